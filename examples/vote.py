"""Vote on answers that you have already: python examples/vote.py

Answer codes are label indices; refused is -1, unusable -2, contradictory -3. No model is needed.
"""

import numpy as np

from ptsearch.voting.votes import majority

LABELS = ("negative", "positive")
# Rows: members. Columns: questions. The second member declines once, the third is unreadable once.
ANSWERS = np.array([[0, 1, 1, 0], [1, -1, 1, 1], [1, 1, -2, -1]], dtype=np.int16)
PRECISION = np.array([8.0, 4.0, 3.0])  # bits; ties go to the most precise of the tied


def main() -> list[str]:
    voted = majority(ANSWERS, PRECISION)
    return [LABELS[code] if code >= 0 else "refused" for code in voted]


if __name__ == "__main__":
    print(", ".join(main()))  # positive, positive, positive, negative
