"""Limits first, made ready for people: what the limits leave, or how they would have to change."""

import tempfile
from pathlib import Path

from rich.console import Console

from ptsearch import results, slo, terminal, tracking
from ptsearch.config import Config
from ptsearch.judge import Judge
from ptsearch.slo import Answer, Relaxation
from ptsearch.study import the_study
from ptsearch.table import Table
from ptsearch.tracking import Tracker
from ptsearch.truth import enumerate_scores


def answer_limits(table: Table, judge: Judge) -> Answer:
    """Among every ensemble of the pool, all of it built and evaluated.

    ValueError: too many ensembles, or a limit that they cannot all be tested for.
    """
    if the_study(table.config).min_skill == "require":
        raise ValueError("study=slo knows no study.min_skill=require: unskilled ones are marked *")
    table.ensure(table.variants)
    return slo.answer(enumerate_scores(table, judge), the_study(table.config))


def verdict(answer: Answer) -> str:
    if answer.pick is not None:
        return f"{answer.feasible:,} of {answer.ensembles:,} ensembles meet the limits"
    least = answer.relaxations[-1]
    return (
        f"none of {answer.ensembles:,} ensembles meets the limits together; the least that must "
        f"give way:\n{slo.as_overrides(least)} (trust {least.trust:.1f})"
    )


def show_relaxations(screen: Console, answer: Answer) -> None:
    """Each limit that helps alone, then the least change of all jointly."""
    terminal.show_grid(
        screen, "What would let an ensemble through",
        ["members", "instead", "trust"],
        [[[" + ".join(each.members), slo.as_overrides(each), f"{each.trust:.1f}"]
          for each in answer.relaxations]],
    )  # fmt: skip


def log_relaxations(tracker: Tracker, config: Config, answer: Answer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "relaxations.csv")
        results.write_rows([_row(each) for each in answer.relaxations], path)
        tracking.finish(
            tracker,
            params=config.choices(),
            metrics={"ensembles": answer.ensembles, "feasible": 0},
            files=[path],
            note=verdict(answer),
        )


def _row(relaxed: Relaxation) -> dict[str, str | int | float]:
    return {
        "kind": "alone" if len(relaxed.limits) == 1 else "joint",
        "members": " + ".join(relaxed.members), "trust": relaxed.trust, **relaxed.limits,
    }  # fmt: skip
