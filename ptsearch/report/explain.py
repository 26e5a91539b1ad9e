"""Why the front is what it is: the diversity of the pool's errors and the split of the gains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ptsearch.evaluation.table import Table
from ptsearch.report import heatmap, rows
from ptsearch.report.diversity import ALL, FIELDS, Ray, pair_rows, summary, xray
from ptsearch.report.gain_split import Split, ledger, mean_split
from ptsearch.report.rows import BEST_SINGLE, Row
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members
from ptsearch.variant import Variant, short_labels
from ptsearch.voting import VOTES


@dataclass(frozen=True)
class Explanation:
    """Of the variants that may vote, by method, bits and seed; of the front, on either half."""

    variants: dict[str, Variant]
    rays: dict[str, Ray]  # by benchmark, search half
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
        rays=xray(search.asked, search.answers(table, list(variants))[0]) if variants else {},
        ensembles=ensembles,
        splits={
            name: ledger(table, scorer, members, baselines)
            for name, scorer in (("search", search), ("holdout", holdout))
        },
        remarks=_remarks(table),
    )


def _remarks(table: Table) -> list[str]:
    """What the vote rule cannot do on these benchmarks."""
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
    """The variants that may vote, by method, bits and seed: kin stand together in a heat map."""
    found = [(label, table.variants[label]) for label in table.voters()]
    return dict(sorted(found, key=lambda item: [getattr(item[1], field) for field in FIELDS]))


def write(explained: Explanation, folder: Path, study: str) -> list[Path]:
    """CSV tables and the heat map of error correlations."""
    names = ("xray.csv", "xray_pairs.csv", "xray.html", "xray.png", "ledger.csv")
    table, pairs, html, png, splits = files = [folder / name for name in names]
    rows.write_rows(summary(explained.rays, list(explained.variants.values())), table)
    rows.write_rows(pair_rows(explained.rays, explained.variants), pairs)
    panels = {name: ray.pairs.correlation for name, ray in explained.rays.items()}
    labels = list(short_labels(explained.variants).values())
    title = (
        f"{study}: correlation of errors between variants, search half (grey: all or none wrong)"
    )
    heatmap.draw_html(panels, labels, html, title)
    heatmap.draw_png(panels, labels, png, title)
    rows.write_rows(_ledger_rows(explained), splits)
    return files


def lines(explained: Explanation) -> list[str]:
    """The same in a few words."""
    found = []
    if len(explained.variants) > 1:
        ray = explained.rays[ALL]
        found.append(
            f"X-ray: {len(explained.variants)} variants vote like {ray.effective:.1f} independent "
            f"ones; right somewhere: {ray.oracle:.1f} %, best single {ray.accuracy.max():.1f} %"
        )
        found.append(f"error correlation: {_correlations(explained)}")
    if explained.ensembles and BEST_SINGLE in explained.splits["holdout"][0]:
        mean = mean_split([s[BEST_SINGLE]["trust"] for s in explained.splits["holdout"]])
        rule = f", vote rule {mean.vote_rule:+.1f}" if mean.vote_rule else ""
        found.append(
            f"ledger: mean gain {mean.gain:+.1f} in held-out trust over the best single variant = "
            f"refusals dropped {mean.refusals_dropped:+.1f}, "
            f"errors mended {mean.errors_mended:+.1f}{rule}"
        )
    return found + explained.remarks


def _correlations(explained: Explanation) -> str:
    """Means over the pairs that differ in nothing but method, bits or seed."""
    found = {
        row["group"]: row["correlation"]
        for row in summary({ALL: explained.rays[ALL]}, list(explained.variants.values()))
    }
    differing = [(f, found[f"only another {f}"]) for f in FIELDS if f"only another {f}" in found]
    said = ", ".join(f"{field} {value:.2f}" for field, value in differing)
    alike = f" (in nothing but {said})" if said else ""
    return f"{found['all pairs']:.2f} where two differ{alike}"


def _ledger_rows(explained: Explanation) -> list[dict[str, str | int | float]]:
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
