"""How close a variant's label distributions are to the dense model's, where labels are compared.

Accuracy hardly moves where answers that turn wrong and answers that turn right cancel: `flips`
(`metrics.flips`) counts both (https://arxiv.org/abs/2407.09141). Divergence and margin see change
before an answer flips. Log-probabilities are (samples, labels), in nats, NaN beyond a sample's
labels and throughout where it has none.
"""

from typing import NamedTuple

import numpy as np

from ptsearch.shared import Floats


def divergence(dense: Floats, other: Floats) -> Floats:
    """(samples,) KL(dense || other) in nats; NaN where one of them has no distribution."""
    with np.errstate(invalid="ignore"):
        terms = np.exp(dense) * (dense - other)
    known = np.isfinite(dense) & np.isfinite(other)
    return np.where(known.any(axis=1), np.where(known, terms, 0.0).sum(axis=1), np.nan)


def margins(logprobs: Floats) -> Floats:
    """(samples,) nats between the two best labels; NaN where there is no distribution."""
    best = np.sort(np.where(np.isfinite(logprobs), logprobs, -np.inf), axis=1)[:, -2:]
    known = np.isfinite(best).all(axis=1)
    return np.where(known, np.diff(np.where(known[:, None], best, 0.0), axis=1)[:, 0], np.nan)


class Near(NamedTuple):
    """Of one variant, both (samples,)."""

    divergence: Floats
    margin: Floats


def kl(near: Near, _: Near) -> float:
    """The mean divergence; NaN where no sample has distributions."""
    known = near.divergence[np.isfinite(near.divergence)]
    return float(known.mean()) if known.size else float("nan")


def margin(near: Near, dense: Near) -> float:
    """The median margin in percent of the dense model's."""
    mine, theirs = (each.margin[np.isfinite(each.margin)] for each in (near, dense))
    if not mine.size or not theirs.size or not np.median(theirs):
        return float("nan")
    return 100.0 * float(np.median(mine) / np.median(theirs))


CLOSENESS = {"kl": kl, "margin": margin}  # name of an objective -> its value
