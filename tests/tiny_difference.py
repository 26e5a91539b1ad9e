"""How far an output moves."""

import numpy as np

Scores = list[list[float]]


def off(found: Scores, expected: Scores, unrounded: Scores) -> float:
    """Mean error, as a share of what rounding changes. It is not 0: the last bit of a float now
    and then decides which way a value is rounded, and in a tiny model one value is much. 1 would
    be as if nothing were rounded.
    """
    a, b, c = (np.concatenate([np.array(row) for row in rows])
               for rows in (found, expected, unrounded))  # fmt: skip
    return float(np.abs(a - b).mean() / np.abs(b - c).mean())
