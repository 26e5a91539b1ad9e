"""Why the front is what it is: the diversity of the pool's errors and the split of the gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptsearch.evaluation.table import Table
from ptsearch.report import diversity, plots, rows
from ptsearch.report.diversity import ALL, FIELDS, Diversity
from ptsearch.report.gain_split import Split, gain_splits, mean_split
from ptsearch.report.rows import BEST_SINGLE, CsvRow, Row
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.variant import Variant, short_labels
from ptsearch.voting import VOTES


@dataclass(frozen=True)
class Explanation:
    """Of the variants that may vote, by method, bits and seed; of the front, on either half."""

    variants: dict[str, Variant]
    diversity: dict[str, Diversity]  # by benchmark, search half
    ensembles: list[Row]  # of the front, with two members or more
    splits: dict[str, list[dict[str, dict[str, Split]]]]  # by half: ensemble, baseline, score
    remarks: list[str]


def explain(
    table: Table,
    scorers: tuple[EnsembleScorer, EnsembleScorer],
    front: Sequence[Row],
    baselines: Mapping[str, Members],
) -> Explanation:
    search, holdout = scorers
    variants = voters(table)
    ensembles = [row for row in front if len(row.members) > 1]
    members = [row.members for row in ensembles]
    return Explanation(
        variants=variants,
        diversity=diversity.measure(search.asked, search.answers(table, list(variants))[0])
        if variants
        else {},
        ensembles=ensembles,
        splits={
            name: gain_splits(table, scorer, members, baselines)
            for name, scorer in (("search", search), ("holdout", holdout))
        },
        remarks=_remarks(table),
    )


def _remarks(table: Table) -> list[str]:
    """What the vote rule cannot use on these benchmarks."""
    rule = VOTES[table.config.vote.rule]
    if not rule.needs_logprobs:
        return []
    scenarios = [s for b in table.benchmarks for s in b.scenarios.values() if s.scored]
    generated = sum(scenario.mode == "generate" for scenario in scenarios)
    return [
        f"{rule.name} vote: {generated} of {len(scenarios)} scenarios have generated replies and "
        "no log-probabilities; there the majority decides"
    ] * bool(generated)


def voters(table: Table) -> dict[str, Variant]:
    """The variants that may vote, sorted by method, bits and seed, as a heat map shows them."""
    found = [(label, table.variants[label]) for label in table.voters()]
    return dict(sorted(found, key=lambda item: [getattr(item[1], field) for field in FIELDS]))


def write(explained: Explanation, folder: Path, study: str) -> list[Path]:
    """CSV tables and heat maps of error correlations."""
    names = ("diversity.csv", "diversity_pairs.csv", "diversity.html", "gain_split.csv")
    summary, pairs, html, splits = files = [folder / name for name in names]
    variants = explained.variants
    rows.write_rows(diversity.summary(explained.diversity), summary)
    rows.write_rows(diversity.pair_rows(explained.diversity, variants), pairs)
    matrices = {name: each.pairs.correlation for name, each in explained.diversity.items()}
    title = f"{study}: correlation of errors, search half (grey: undefined)"
    plots.draw_heat_maps(matrices, list(short_labels(variants).values()), html, title)
    rows.write_rows(_split_rows(explained), splits)
    return files


def lines(explained: Explanation) -> list[str]:
    """A summary for the terminal."""
    summary = []
    if len(explained.variants) > 1:
        of_all = explained.diversity[ALL]
        summary.append(
            f"diversity: {len(explained.variants)} variants vote like {of_all.effective:.1f} "
            f"independent ones; at least one is right on {of_all.oracle:.1f} % of samples, "
            f"the best single variant on {of_all.accuracy.max():.1f} %"
        )
        summary.append(f"error correlation: {_correlations(explained)}")
    if explained.ensembles and BEST_SINGLE in explained.splits["holdout"][0]:
        mean = mean_split([s[BEST_SINGLE]["trust"] for s in explained.splits["holdout"]])
        rule = f", vote rule {mean.vote_rule:+.1f}" if mean.vote_rule else ""
        summary.append(
            f"gain split: mean held-out trust over the best single variant {mean.gain:+.1f} = "
            f"refusals dropped {mean.refusals_dropped:+.1f}, "
            f"errors corrected {mean.errors_corrected:+.1f}{rule}"
        )
    return summary + explained.remarks


def _correlations(explained: Explanation) -> str:
    """Means over all pairs, and over those that differ in nothing but method, bits or seed."""
    of_all = explained.diversity[ALL]
    (everything,) = diversity.summary({ALL: of_all})
    means = diversity.correlation_by_field(of_all, list(explained.variants.values()))
    by_field = ", ".join(f"{field} {value:.2f}" for field, value in means.items())
    alike = f" (pairs that differ only in {by_field})" if by_field else ""
    return f"{everything['correlation']:.2f} over all pairs{alike}"


def _split_rows(explained: Explanation) -> list[CsvRow]:
    return [
        {
            "members": " + ".join(row.members), "run_id": row.run_id, "half": half,
            "over": baseline, "score": key, **split._asdict(),
        }
        for half, found in explained.splits.items()
        for row, by_baseline in zip(explained.ensembles, found, strict=True)
        for baseline, by_key in by_baseline.items()
        for key, split in by_key.items()
    ]  # fmt: skip
