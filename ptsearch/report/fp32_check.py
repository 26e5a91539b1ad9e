"""The front's members once more in fp32: which answers, and which scores, rounding had moved."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ptsearch.aliases import AnswerCodes, Floats
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import Table
from ptsearch.report.cascade import margins
from ptsearch.report.rows import SHOWN, Row
from ptsearch.scoring.scores import Scores
from ptsearch.search.scorer import EnsembleScorer

NEAR_TIE = 2e-4  # nats between the two best labels within which fp32 itself leaves the answer open


@dataclass(frozen=True)
class Recheck:
    """Flips are answers that are others in fp32, in percent of the samples."""

    flips: dict[str, float]  # of each member
    voted: list[float]  # of each ensemble of the front, on the search half
    scores: list[Scores]  # its scores in fp32, on the search half
    open: float  # percent of the members' choices that are near ties in fp32

    def moved(self, front: Sequence[Row], key: str) -> float:
        """How far a score of the front lies from itself in fp32, at most."""
        pairs = zip(front, self.scores, strict=True)
        return max(abs(row.search[key] - exact[key]) for row, exact in pairs)


def recheck(table: Table, scorer: EnsembleScorer, front: Sequence[Row]) -> Recheck:
    """Evaluate the members of the front in fp32; their flips are kept with their predictions."""
    engine = replace(table.config.engine, dtype="float32")
    exact = replace(table, config=replace(table.config, engine=engine), entries={})
    labels = list(dict.fromkeys(label for row in front for label in row.members))
    exact.ensure(labels)
    for label in labels:
        _keep(table, label, exact.entries[label].codes)
    found = [scorer(exact, row.members) for row in front]
    return Recheck(
        {name: flips(table.entries[name].codes, exact.entries[name].codes) for name in labels},
        [flips(scorer.vote(table, row.members), scorer.vote(exact, row.members)) for row in front],
        [{key: scores[key] for key in SHOWN} for scores in found],
        _percent_open(np.concatenate([margins(exact, label) for label in labels])),
    )


def flips(found: AnswerCodes, exact: AnswerCodes) -> float:
    """Percent of the answers that are others in fp32; a refusal is an answer here."""
    return 100 * float(np.mean(found != exact))


def near_ties(sure: Floats) -> int:
    """How many choices lie within NEAR_TIE. sure: (samples,) margins, NaN where none was made."""
    return int(np.sum(sure <= NEAR_TIE))


def _percent_open(sure: Floats) -> float:
    chosen = int(np.sum(~np.isnan(sure)))
    return 100 * near_ties(sure) / chosen if chosen else float("nan")


def _keep(table: Table, label: str, exact: AnswerCodes) -> None:
    """Write the flips of each benchmark into the metadata of its predictions."""
    start, outputs = 0, table.outputs(label)
    for benchmark in table.benchmarks:
        rows = slice(start, start + len(benchmark.samples))
        start = rows.stop
        rate = flips(table.entries[label].codes[rows], exact[rows])
        predictions.annotate(outputs[benchmark.name], {"fp32_flips_percent": f"{rate:.4f}"})
