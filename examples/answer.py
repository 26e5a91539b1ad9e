"""Ask an exported ensemble: python examples/answer.py FOLDER

FOLDER was written by python -m ptsearch +export=ensemble export.out=FOLDER
"""

import sys
from pathlib import Path

from ptsearch import PrecisionEnsemble

PROMPTS = ("Review: a dull film.\nSentiment:", "Review: what a joy!\nSentiment:")
LABELS = ("negative", "positive")


def main(folder: Path) -> list[str]:
    ensemble = PrecisionEnsemble.from_pretrained(folder)
    lines = []
    for prompt, answer in zip(PROMPTS, ensemble.answer(PROMPTS, LABELS), strict=True):
        members = ", ".join(f"{label}: {said}" for label, said in answer.members.items())
        lines.append(f"{prompt!r} -> {answer.label} ({members})")
    return lines


if __name__ == "__main__":
    print("\n".join(main(Path(sys.argv[1]))))
