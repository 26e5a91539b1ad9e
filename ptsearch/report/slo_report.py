"""Limits first, made ready for people: what the limits leave, or how they would have to change."""

import tempfile
from pathlib import Path

from rich.console import Console

from ptsearch.config import Config
from ptsearch.evaluation.table import Table
from ptsearch.report import rows, terminal, tracking
from ptsearch.report.tracking import Tracker
from ptsearch.search import limits
from ptsearch.search.exact_front import enumerate_scores
from ptsearch.search.limits import Answer, Relaxation
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import study_config


def answer_limits(table: Table, scorer: EnsembleScorer) -> Answer:
    """Among every ensemble of the pool, all of it built and evaluated.

    ValueError: too many ensembles, or a limit that they cannot all be tested for.
    """
    if study_config(table.config).min_skill == "require":
        raise ValueError("study=slo knows no study.min_skill=require: unskilled ones are marked *")
    table.ensure(table.variants)
    return limits.answer(enumerate_scores(table, scorer), study_config(table.config))


def verdict(answer: Answer) -> str:
    if answer.pick is not None:
        return f"{answer.feasible:,} of {answer.ensembles:,} ensembles meet the limits"
    least = answer.relaxations[-1]
    return (
        f"none of {answer.ensembles:,} ensembles meets the limits together; the least that must "
        f"give way:\n{limits.as_overrides(least)} (trust {least.trust:.1f})"
    )


def show_relaxations(screen: Console, answer: Answer) -> None:
    """Each limit that helps alone, then the least change of all jointly."""
    terminal.show_grid(
        screen, "What would let an ensemble through",
        ["members", "instead", "trust"],
        [[[" + ".join(each.members), limits.as_overrides(each), f"{each.trust:.1f}"]
          for each in answer.relaxations]],
    )  # fmt: skip


def log_relaxations(tracker: Tracker, config: Config, answer: Answer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "relaxations.csv")
        rows.write_rows([_row(each) for each in answer.relaxations], path)
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
