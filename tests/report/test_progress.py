"""Progress: the time left for the whole, with and without a terminal."""

import io

import pytest
from rich.console import Console

from ptsearch.report.progress import WHOLE, Estimate, progress
from ptsearch.shared import BUILDING, EVALUATING, VARIANTS


class Clock:
    """Seconds that the test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def answered(estimate: Estimate, clock: Clock, label: str, seconds: float) -> None:
    estimate.see(EVALUATING + label, 0, 100)
    clock.now += seconds
    estimate.see(EVALUATING + label, 100, 100)


def test_the_time_left_is_of_variants_and_of_the_build() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    assert estimate.words() == ""
    answered(estimate, clock, "dense", 60)
    estimate.see(VARIANTS, 1, 13)
    assert estimate.left() == 12 * 60
    estimate.see(BUILDING, 0, 30)
    clock.now += 100
    estimate.see(BUILDING, 10, 30)
    assert estimate.left() == pytest.approx(12 * 60 + 200)
    estimate.see(BUILDING, 30, 30)
    answered(estimate, clock, "a", 30)
    estimate.see(VARIANTS, 2, 13)
    estimate.see(EVALUATING + "b", 50, 100)
    assert estimate.left() == pytest.approx(10.5 * 45)
    assert estimate.words() == "about 8 min left"
    estimate.see(VARIANTS, 13, 13)
    assert estimate.words() == ""


def test_variants_side_by_side_take_half_the_time() -> None:
    clock = Clock()
    estimate = Estimate(clock)
    for label in ("a", "b"):
        estimate.see(EVALUATING + label, 0, 10)
    clock.now += 60
    for label in ("a", "b"):
        estimate.see(EVALUATING + label, 10, 10)
    estimate.see(VARIANTS, 2, 6)
    assert estimate.left() == 4 * 30


def test_without_a_terminal_each_stage_is_one_line() -> None:
    screen = Console(file=io.StringIO(), width=80)
    with progress(screen) as report:
        for done in (0, 1):
            report("getting tiny", done, 1)
        for done in (0, 5, 10):
            report(EVALUATING + "none", done, 10)
        report(VARIANTS, 1, 4)
        report(EVALUATING + "rtn-4b", 0, 10)
    assert screen.file.getvalue().splitlines() == [
        "getting tiny ...", "evaluating none ...", "evaluating rtn-4b ... (about 1 min left)"
    ]  # fmt: skip


def test_in_a_terminal_finished_stages_leave() -> None:
    screen = Console(file=io.StringIO(), width=80, force_terminal=True)
    with progress(screen) as report:
        report("getting tiny", 0, 1)
        report("getting tiny", 1, 1)
        report(EVALUATING + "none", 0, 10)
        report(EVALUATING + "none", 10, 10)
        report(VARIANTS, 1, 4)
        report(EVALUATING + "rtn-4b", 1, 10)
        screen.file.seek(0)
        screen.file.truncate()
    last = screen.file.getvalue()
    assert WHOLE in last
    assert "1/4" in last
    assert "about 1 min left" in last
    assert "evaluating rtn-4b" in last
    assert "getting tiny" not in last
