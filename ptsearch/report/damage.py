"""Which decisions a compressed model takes otherwise than the base model: flips both ways, margins
kept, and the samples on which it is worst.
"""

from collections.abc import Mapping
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from ptsearch.evaluation import distributions
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import samples as texts
from ptsearch.scoring.metrics import is_correct
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.shared import AnswerCodes, CsvRow, Floats

WORST = 20  # samples that are shown
COLUMNS = ("benchmark", "scenario", "sample", "prompt", "right", "base", "candidate",
           "lead_lost_nats")  # fmt: skip


class Flips(NamedTuple):
    """Right answers of the base model that became wrong, and the reverse."""

    samples: int
    changed: int  # answers that differ
    lost: int
    gained: int
    p: float  # McNemar's exact test, two-sided: that lost and gained are equally likely


def flips(changed: NDArray[np.bool_], before: NDArray[np.bool_], after: NDArray[np.bool_]) -> Flips:
    """Of samples (n,): whether the answer differs, and was and is right."""
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    p = float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0
    return Flips(changed.size, int(changed.sum()), lost, gained, p)


def rows(table: Table, scorer: EnsembleScorer, models: Mapping[str, Members]) -> list[CsvRow]:
    """For each model and all samples of the scorer, each benchmark and each scenario: its flips
    against the dense model, and for one member the ratio of median margins between the two best
    labels (nan: ensembles, generated replies).
    """
    base = scorer.vote(table, (DENSE,))
    places = {"all": np.arange(base.size), **scorer.asked.scored()}
    places |= {f"{part.benchmark}/{part.scenario.name}": part.rows for part in scorer.asked.parts}
    before, dense = _right(scorer, base), _margins(table, scorer, DENSE)
    found: list[CsvRow] = []
    for name, members in models.items():
        codes = scorer.vote(table, members)
        after = _right(scorer, codes)
        mine = _margins(table, scorer, members[0]) if len(members) == 1 else dense * np.nan
        for place, inside in places.items():
            flipped = flips((codes != base)[inside], before[inside], after[inside])
            both = inside[np.isfinite(mine[inside]) & np.isfinite(dense[inside])]
            ratio = float(np.median(mine[both]) / np.median(dense[both])) if both.size else np.nan
            row: CsvRow = {"model": name, "where": place, **flipped._asdict()}
            found.append(row | {"margin_ratio": ratio})
    return found


def in_words(row: CsvRow) -> str:
    """A row of `rows`."""
    p = float(row["p"])
    odds = f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
    kept = float(row["margin_ratio"])
    margins = f"; the median margin is {kept:.2f} of the base model's" if kept == kept else ""
    return (
        f"{row['changed']} of {row['samples']} answers changed: {row['lost']} right ones lost, "
        f"{row['gained']} gained (McNemar's exact test, {odds}){margins}."
    )


def worst(table: Table, scorer: EnsembleScorer, members: Members) -> list[CsvRow]:
    """The `WORST` right answers that were lost, largest drop of the right label's lead first; of
    ensembles and generated replies, which have none, in the samples' order.
    """
    base, codes = scorer.vote(table, (DENSE,)), scorer.vote(table, members)
    lost = np.flatnonzero(_right(scorer, base) & ~_right(scorer, codes))
    drop: Floats = np.full(base.size, -np.inf)
    if len(members) == 1:
        change = np.subtract(*(_leads(table, scorer, x) for x in (DENSE, members[0])))
        drop = np.where(np.isfinite(change), change, drop)
    every = [(b, s) for b in table.benchmarks for s in b.samples]
    asked = list(compress(every, scorer.mask))
    replies = [
        list(compress(texts.replies(table, x), scorer.mask)) if len(members) == 1 else []
        for x in (DENSE, members[0])
    ]
    found: list[CsvRow] = []
    for place in lost[np.argsort(-drop[lost], kind="stable")][:WORST]:
        benchmark, sample = asked[place]
        given = [texts.answer(sample, int(each[place])) for each in (base, codes)]
        said = [each[place] if each else None for each in replies]
        lead = round(float(drop[place]), 3) if np.isfinite(drop[place]) else ""
        cells = (
            benchmark.name, sample.scenario, sample.id, texts.prompt_of(sample),
            texts.answer(sample, sample.gold), said[0] or given[0], said[1] or given[1], lead,
        )  # fmt: skip
        found.append(dict(zip(COLUMNS, cells, strict=True)))
    return found


def _right(scorer: EnsembleScorer, codes: AnswerCodes) -> NDArray[np.bool_]:
    asked = scorer.asked
    return np.asarray(is_correct(codes, asked.gold, asked.n_labels, asked.abstain_ok))


def _margins(table: Table, scorer: EnsembleScorer, label: str) -> Floats:
    """(samples,) nats between the two best labels; NaN where there is no distribution."""
    near = distributions.closeness(table, label, DENSE)
    return near.margin[scorer.mask] if near else np.full(scorer.asked.gold.size, np.nan)


def _leads(table: Table, scorer: EnsembleScorer, label: str) -> Floats:
    """(samples,) nats of the right label over the best other one; NaN as in `_margins`."""
    if distributions.closeness(table, label, DENSE) is None:
        return np.full(scorer.asked.gold.size, np.nan)
    known = distributions.logprobs(table.benchmarks, table.outputs(label))[scorer.mask]
    gold = scorer.asked.gold[:, None]
    is_other = (np.arange(known.shape[1]) != gold) & np.isfinite(known)
    others = np.where(is_other, known, -np.inf).max(axis=1)
    right = np.take_along_axis(known, gold.astype(np.intp), axis=1)[:, 0]
    return np.where(np.isfinite(others), right - others, np.nan)
