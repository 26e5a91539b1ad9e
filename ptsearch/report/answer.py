"""The answer of a study: the ensembles that it points to, and what may be said of them.

Picks are chosen on the search half; what the sentences claim of them was seen on the held-out half.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.report.rows import BEST_SINGLE, DENSE_MODEL, Row, best_single, knee
from ptsearch.scoring.scores import nan_last
from ptsearch.search.comparisons import figures, gains, in_words, losses
from ptsearch.search.scorer import EnsembleScorer

KNEE, BEST_TRUST, AS_GOOD = "knee", "best_trust", "smallest_as_good_as_dense"
PICKS = {  # name -> what it is
    KNEE: "nearest to the ideal point, each objective in units of the front's range",
    BEST_TRUST: "the highest trust on the search half",
    AS_GOOD: "the least memory of those that are proven worse than the dense model on no score of "
    "the search half",
}


@dataclass(frozen=True)
class Answer:
    """What a study found, for people."""

    sentences: list[str]
    picks: dict[str, Row]  # by name; one row may be several


def with_picks(
    table: Table, search: EnsembleScorer, front: Sequence[Row], objectives: Sequence[str]
) -> list[Row]:
    """The front, smallest first, each row with the names of the picks that it is."""
    chosen = {
        KNEE: front[knee([row.search for row in front], objectives)],
        BEST_TRUST: max(front, key=lambda row: nan_last(row.search["trust"])),
        AS_GOOD: _as_good_as_dense(table, search, front),
    }
    return [
        replace(row, picks=tuple(name for name, pick in chosen.items() if pick is row))
        for row in front
    ]


def _as_good_as_dense(table: Table, search: EnsembleScorer, front: Sequence[Row]) -> Row | None:
    """None: every row loses something, or there are too few items to tell."""
    try:
        each = gains(table, search, [row.members for row in front], {DENSE_MODEL: (DENSE,)})
    except ValueError:
        return None
    good = (row for row, over in zip(front, each, strict=True) if not losses(over[DENSE_MODEL]))
    return next(good, None)


def answer(front: Sequence[Row], compared: Sequence[Row], held_out: int) -> Answer:
    """`compared` begins with the dense model; `held_out` samples decide."""
    picks = {name: row for row in front for name in row.picks}
    dense_gb = compared[0].search["memory_gb"]
    if not any(row.gains for row in front):
        return Answer(["Nothing is claimed: there are no intervals."], picks)
    best = best_single(compared)
    sentences = [
        *_about_dense(compared[0]),
        *_about_as_good(picks.get(AS_GOOD), front, dense_gb, held_out),
        _about_gain(front, best, picks.get(BEST_TRUST)),
        _about_losses(front),
    ]
    return Answer(sentences, picks)


def _about_dense(dense: Row) -> list[str]:
    lacking = ", ".join(name for name in dense.unskilled if "/" not in name)
    return [f"The dense model itself shows no skill in {lacking}."] if lacking else []


def _about_as_good(
    pick: Row | None, front: Sequence[Row], dense_gb: float, held_out: int
) -> list[str]:
    if pick is None and len(front) > 1:
        if all(losses(row.gains[DENSE_MODEL]) for row in front):
            return ["Every choice is proven worse than the dense model on some score."]
        return ["No choice shows on the search half that it is as good as the dense model."]
    row = pick or front[0]
    share = f"{100 * row.search['memory_gb'] / dense_gb:.0f} % of its memory"
    if lost := losses(row.gains[DENSE_MODEL]):
        return [
            f"{row.name} ({share}) loses against the dense model: {in_words(lost)}, on {held_out} "
            "held-out samples."
        ]
    return [
        f"{row.name} loses nothing against the dense model that {held_out} held-out samples can "
        f"show, at {share}."
    ]


def _about_gain(front: Sequence[Row], best: Row | None, trusted: Row | None) -> str:
    """Whether any ensemble gains trust over the best single variant."""
    others = [row for row in front if best and row.members != best.members]
    if best is None or not others:
        return "No ensemble of several variants is on the front."
    over = {row.name: row.gains[BEST_SINGLE]["trust"] for row in others}
    proven = {name: gain for name, gain in over.items() if gain.is_evident}
    if proven:
        name = max(proven, key=lambda name: proven[name].low)
        return (
            f"{len(proven)} of {len(front)} are proven more trusted than the best single variant "
            f"({best.name}): {name} by {figures(proven[name])} points."
        )
    candidate = trusted if trusted in others else max(others, key=lambda row: row.search["trust"])
    found = figures(over[candidate.name])
    return (
        "No choice on the front is proven more trusted than the best single variant "
        f"({best.name}); the candidate, {candidate.name}, may differ by {found} points."
    )


def _about_losses(front: Sequence[Row]) -> str:
    """Which scores the front loses against the dense model, most often lost first."""
    lost = [losses(row.gains[DENSE_MODEL]) for row in front]
    every = dict.fromkeys(key for row in front for key in row.gains[DENSE_MODEL])
    keys = [key for key in every if any(key in each for each in lost)]
    keys.sort(key=lambda key: -sum(key in each for each in lost))
    if not keys:
        return "No choice on the front is proven worse than the dense model on any score."
    counts = []
    for key in keys:
        rows = [row for row, each in zip(front, lost, strict=True) if key in each]
        least = next((row for row, e in zip(front, lost, strict=True) if key not in e), None)
        below = [r for r in rows if least is None or front.index(r) < front.index(least)]
        up_to = f", all up to {below[-1].search['memory_gb']:.3f} GB" if below else ""
        counts.append(f"{key} ({len(rows)} of {len(front)}{up_to})")
    return f"Proven losses against the dense model: {', '.join(counts)}."
