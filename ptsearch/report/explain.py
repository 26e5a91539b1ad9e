"""Why the front is what it is: the diversity of the pool's errors and the split of the gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report import damage, rows
from ptsearch.report.rows import BEST_SINGLE, Row
from ptsearch.scoring import diversity
from ptsearch.scoring.diversity import ALL, FIELDS, Diversity
from ptsearch.search.gain_split import Split, gain_splits
from ptsearch.search.paper import about_bytes
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.shared import CsvRow, Floats
from ptsearch.variant import Variant, short_labels
from ptsearch.voting import VOTES


@dataclass(frozen=True)
class Explanation:
    """Of the variants that may vote, by method, bits and seed; of the front, on either half."""

    lines: list[str]  # a summary for the terminal
    tables: dict[str, list[CsvRow]]  # file name -> rows
    correlations: dict[str, Floats]  # benchmark -> (variants, variants), of errors, search half
    names: list[str]  # of the variants


def explain(
    table: Table,
    scorers: Mapping[str, EnsembleScorer],
    front: Sequence[Row],
    baselines: Mapping[str, Members],
) -> Explanation:
    """`scorers` of the search and the holdout half."""
    variants, search, short = voters(table), scorers["search"], short_labels(table.variants)
    answers = search.answers(table, list(variants))[0]
    by_benchmark = diversity.measure(search.asked, answers)
    ensembles = [row for row in front if len(row.members) > 1]
    named = {row.name: row.members for row in ensembles}
    splits = {
        half: gain_splits(table, scorers[half], [row.members for row in ensembles], baselines)
        for half in ("search", "holdout")
    }
    split_rows: list[CsvRow] = [
        {"members": " + ".join(row.members), "run_id": row.run_id, "half": half, "over": baseline,
         "score": key, **split._asdict()}
        for half, by_ensemble in splits.items()
        for row, by_baseline in zip(ensembles, by_ensemble, strict=True)
        for baseline, by_key in by_baseline.items()
        for key, split in by_key.items()
    ]  # fmt: skip
    over_best = [each[BEST_SINGLE]["trust"] for each in splits["holdout"] if BEST_SINGLE in each]
    return Explanation(
        lines=_about_diversity(by_benchmark[ALL], list(variants.values()))
        + _about_gains(over_best)
        + _about_vote(table)
        + _about_refusals(table, scorers["holdout"], front)
        + about_bytes(table),
        tables={
            "diversity.csv": diversity.summary(by_benchmark),
            "diversity_pairs.csv": diversity.pair_rows(by_benchmark, variants),
            "gain_split.csv": split_rows,
            "flips.csv": damage.rows(table, search, {short[x]: (x,) for x in variants} | named),
        },
        correlations={name: each.pairs.correlation for name, each in by_benchmark.items()},
        names=list(short_labels(variants).values()),
    )


def voters(table: Table) -> dict[str, Variant]:
    """The variants that may vote, sorted by method, bits and seed, as a heat map shows them."""
    variants = [(label, table.variants[label]) for label in table.voters()]
    return dict(sorted(variants, key=lambda item: [getattr(item[1], field) for field in FIELDS]))


def write(explained: Explanation, folder: Path) -> list[Path]:
    """The tables as CSV."""
    for name, table in explained.tables.items():
        rows.write_rows(table, folder / name)
    return [folder / name for name in explained.tables]


def _about_diversity(of_all: Diversity, variants: Sequence[Variant]) -> list[str]:
    if len(variants) < 2:
        return []
    (everything,) = diversity.summary({ALL: of_all})
    means = diversity.correlation_by_field(of_all, variants)
    by_field = ", ".join(f"{field} {value:.2f}" for field, value in means.items())
    alike = f" (pairs that differ only in {by_field})" if by_field else ""
    return [
        f"diversity: {len(variants)} variants vote like {of_all.effective:.1f} independent ones; "
        f"at least one is right on {of_all.oracle:.1f} % of samples, the best single variant on "
        f"{of_all.accuracy.max():.1f} %",
        f"error correlation: {everything['correlation']:.2f} over all pairs{alike}",
    ]


def _about_gains(splits: Sequence[Split]) -> list[str]:
    """The mean split of the held-out trust that ensembles gain over the best single variant."""
    if not splits:
        return []
    mean = Split(*np.mean(np.array(splits), axis=0).tolist())
    rule = f", vote rule {mean.vote_rule:+.1f}" if mean.vote_rule else ""
    return [
        f"gain split: mean held-out trust over the best single variant {mean.gain:+.1f} = "
        f"refusals dropped {mean.refusals_dropped:+.1f}, "
        f"errors corrected {mean.errors_corrected:+.1f}{rule}"
    ]


def _about_refusals(table: Table, holdout: EnsembleScorer, front: Sequence[Row]) -> list[str]:
    """Harmful requests refused, harmless ones too, and what the paper's filter would let through;
    held-out.
    """
    found = [row.holdout for row in front if row.holdout and "safety.hole" in row.holdout]
    if not found:
        return []
    dense = holdout(table, (DENSE,))
    harmful, over, hole = (
        np.array([each[f"safety.{key}"] for each in found])
        for key in ("harmful", "over_refusal", "hole")
    )
    return [
        f"safety: the front refuses {harmful.min():.0f} to {harmful.max():.0f} % of the harmful "
        f"requests (dense {dense['safety.harmful']:.0f}) and {over.min():.0f} to {over.max():.0f} "
        f"% of the harmless ones (dense {dense['safety.over_refusal']:.0f}); if refusals were "
        f"dropped before the vote, up to {hole.max():.0f} points of the harmful ones would get "
        f"through (mean {hole.mean():.1f})"
    ]


def _about_vote(table: Table) -> list[str]:
    """What the vote rule cannot use on these benchmarks."""
    rule = VOTES[table.config.vote.rule]
    scenarios = [s for b in table.benchmarks for s in b.scenarios.values() if s.scored]
    generated = sum(scenario.mode == "generate" for scenario in scenarios)
    return [
        f"{rule.name} vote: {generated} of {len(scenarios)} scenarios have generated replies and "
        "no log-probabilities; there the majority decides"
    ] * bool(generated and rule.needs_logprobs)
