"""Progress of a job: what is under way and the time left for the whole."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from ptsearch.shared import BUILDING, EVALUATING, VARIANTS, Report

WHOLE = "variants answered"  # the bar of the whole


class Estimate:
    """The time left for a study, from how long its parts took so far."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.begun: dict[str, float] = {}  # stages under way -> since when
        self.shares: dict[str, float] = {}  # stage -> how much of it is done, 0 to 1
        self.seconds: list[float] = []  # that variants took to answer
        self.most = 1  # variants that answered side by side
        self.variants = 0  # still to answer, those under way included

    def see(self, stage: str, done: int, total: int) -> None:
        if stage == VARIANTS:
            self.variants = total - done
            return
        self.begun.setdefault(stage, self.clock())
        self.shares[stage] = done / max(total, 1)
        answering = [name for name in self.begun if name.startswith(EVALUATING)]
        self.most = max(self.most, len(answering))
        if done >= total:
            seconds = self.clock() - self.begun.pop(stage)
            if stage.startswith(EVALUATING):
                self.seconds.append(seconds)

    def left(self) -> float | None:
        """Seconds; None while no variant has answered, or nothing is left to answer."""
        if not self.seconds or not self.variants:
            return None
        building = 0.0
        if (since := self.begun.get(BUILDING)) and (share := self.shares[BUILDING]):
            building = (self.clock() - since) * (1 - share) / share
        under_way = sum(self.shares[name] for name in self.begun if name.startswith(EVALUATING))
        each = sum(self.seconds) / len(self.seconds) / self.most
        return building + max(self.variants - under_way, 0) * each

    def words(self) -> str:
        """about 12 min left; "" where it is not known."""
        left = self.left()
        return "" if left is None else f"about {max(round(left / 60), 1)} min left"


@contextmanager
def progress(screen: Console) -> Iterator[Report]:
    """A report function: a bar for the whole and one for each stage under way, finished ones leave;
    without a terminal, one line per stage.
    """
    estimate = Estimate()
    if not screen.is_terminal:
        yield _lines(screen, estimate)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with Progress(*columns, console=screen, expand=True, transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            estimate.see(stage, done, total)
            name = WHOLE if stage == VARIANTS else stage
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total, left="")
            finished = name != WHOLE and done >= total
            bars.update(tasks[name], completed=done, total=total, visible=not finished)
            if WHOLE in tasks:
                bars.update(tasks[WHOLE], left=estimate.words())

        yield report


def _lines(screen: Console, estimate: Estimate) -> Report:
    started: set[str] = set()

    def report(stage: str, done: int, total: int) -> None:
        estimate.see(stage, done, total)
        if stage not in started and stage != VARIANTS:
            started.add(stage)
            left = estimate.words()
            screen.print(f"{stage} ..." + (f" ({left})" if left else ""))

    return report
