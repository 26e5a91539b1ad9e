"""Label distributions of a variant, from its predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ptsearch.benchmarks import Benchmark
from ptsearch.evaluation import predictions
from ptsearch.scoring import scores
from ptsearch.scoring.closeness import Near, divergence, margins
from ptsearch.shared import Floats

if TYPE_CHECKING:
    from ptsearch.evaluation.table import Table

Outputs = Mapping[str, Path]  # benchmark -> its predictions


def logprobs(benchmarks: Sequence[Benchmark], outputs: Outputs) -> Floats:
    """(samples, labels), see `scores.logprobs`."""
    width = max(len(s.question.labels) for b in benchmarks for s in b.samples) + 1
    return np.concatenate(
        [scores.logprobs(predictions.read(outputs[b.name]), width) for b in benchmarks]
    )


def closeness(table: "Table", label: str, dense: str) -> Near | None:
    """Of a variant to the dense one, of all samples; None where one of the two has no predictions.
    The table keeps it.
    """
    if label not in table.near:
        outputs = [table.outputs(each) for each in (label, dense)]
        if not all(path.exists() for each in outputs for path in each.values()):
            return None
        own, other = (logprobs(table.benchmarks, each) for each in outputs)
        table.near[label] = Near(divergence(other, own), margins(own))
    return table.near[label]
