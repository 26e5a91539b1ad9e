"""Every scenario beside what needs no model, so that "always no" never looks like fairness 100."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ptsearch.report import rows as results
from ptsearch.report.rows import Row
from ptsearch.scoring import scores
from ptsearch.scoring.scores import Scores
from ptsearch.search.scorer import EnsembleScorer

HEADS = ("samples", "majority\nclass", "constant\nanswer")
BESIDE = ("accuracy", "refusal_rate")  # of the scores that stand beside a scenario's own


class Sheet(NamedTuple):
    """Scores by scenario (`fairness/zero`), in percent."""

    free: dict[str, Scores]  # scenario -> scored, samples, majority, constant
    models: Mapping[str, Scores]  # name -> scores


def sheet(scorer: EnsembleScorer, models: Mapping[str, Scores]) -> Sheet:
    """`models`: their scores on the samples of the scorer."""
    return Sheet(scores.without_model(scorer.asked, scorer.config.trust.weights), models)


def of_front(search: EnsembleScorer, compared: Sequence[Row], front: Sequence[Row]) -> Sheet:
    """On the search half what the front is compared with, and the most trusted ensemble of it."""
    most = max(front, key=lambda row: row.search["trust"])
    models = {row.name: row.search for row in compared} | {"most trusted": most.search}
    return sheet(search, models)


def write(sheet: Sheet, path: Path) -> None:
    """A CSV, a row for each scenario: of each model the score, accuracy and refusal rate."""
    rows: list[dict[str, str | int | float]] = []
    for name, free in sheet.free.items():
        row: dict[str, str | int | float] = {"scenario": name, **free}
        for model, found in sheet.models.items():
            row[model] = found[name]
            keys = {key: f"{name}.{key}" for key in BESIDE}
            row |= {f"{model}: {key}": found[k] for key, k in keys.items() if k in found}
        rows.append(row)
    results.write_rows(rows, path)


def cells(sheet: Sheet, shown: Sequence[str]) -> list[list[list[str]]]:
    """For a table of HEADS and the models `shown`: a block of rows for each benchmark.

    An accuracy in brackets stands where the score is another than that; what is not scored is in
    brackets itself.
    """
    blocks: dict[str, list[list[str]]] = {}
    for name, free in sheet.free.items():
        shown_as = name if free["scored"] else f"({name})"
        row = [
            shown_as,
            f"{free['samples']:.0f}",
            f"{free['majority']:.1f}",
            f"{free['constant']:.1f}",
        ]
        row += [_cell(sheet.models[model], name) for model in shown]
        blocks.setdefault(name.split("/")[0], []).append(row)
    return list(blocks.values())


def _cell(found: Scores, name: str) -> str:
    score, accuracy = found[name], found.get(f"{name}.accuracy")
    beside = "" if accuracy in (None, score) else f" ({accuracy:.1f})"
    return f"{score:.1f}{beside}"
