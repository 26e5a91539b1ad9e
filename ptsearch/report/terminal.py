"""What a person sees: progress bars while it works, the front as a table at the end."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table as RichTable

from ptsearch.aliases import Report
from ptsearch.report import scenarios
from ptsearch.report.rows import BEST_SINGLE, Row
from ptsearch.report.scenarios import Sheet

WIDTH = 118  # where the output is no terminal


def console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(width=None if stream.isatty() else WIDTH, highlight=False, stderr=stderr)


@contextmanager
def progress(screen: Console) -> Iterator[Report]:
    """A report function: one bar for each thing under way; without a terminal, a line each."""
    if not screen.is_terminal:
        yield _lines(screen)
        return
    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=screen, expand=True) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield report


def _lines(screen: Console) -> Report:
    begun: set[str] = set()

    def report(stage: str, done: int, total: int) -> None:
        if stage not in begun:
            begun.add(stage)
            screen.print(f"{stage} ...")

    return report


def show_rows(screen: Console, title: str, rows: Sequence[Row], dense_gb: float) -> None:
    """Scores of the search half, trust of the holdout half beside; percent, that of the dense
    model's bytes too.
    """
    table = _table(title)
    table.add_column("members", overflow="fold", ratio=1)
    for name in ("trust", "held\nout", "gain", "adv", "fair", "ethics", "ood", "MMLU", "held\nout",
                 "re-\nfused", "GB", "% of\ndense", "ms"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        found, held = row.search, row.holdout
        mark = " *" if row.unskilled else ""
        table.add_row(
            row.name + mark,
            *(f"{found['trust']:.1f}", f"{held['trust']:.1f}" if held else "", _gain(row)),
            *(
                f"{found[name]:.1f}"
                for name in ("adversarial", "fairness", "ethics", "ood", "mmlu")
            ),
            f"{held['mmlu']:.1f}" if held else "",
            f"{found['refusal_rate']:.1f}",
            f"{found['memory_gb']:.3f}",
            f"{100 * found['memory_gb'] / dense_gb:.0f}",
            f"{found['latency_ms']:.0f}",
            style="" if row.kind == "front" else "dim",
        )
    screen.print(table)


def show_grid(
    screen: Console, title: str, columns: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]]
) -> None:
    """A table of ready texts, the first column a name; a line after each block of rows."""
    table = _table(title)
    for i, name in enumerate(columns):
        if i:
            table.add_column(name, justify="right", no_wrap=True)
        else:
            table.add_column(name, overflow="fold", ratio=1)
    for block in blocks:
        for row in block:
            table.add_row(*row)
        table.add_section()
    screen.print(table)


def show_scenarios(screen: Console, half: str, sheet: Sheet, models: Sequence[str]) -> None:
    """What the `models` score in each scenario of a half beside what needs no model."""
    show_grid(
        screen, f"Scenarios, {half}: score (accuracy) beside what needs no model",
        ["", *scenarios.HEADS, *models], scenarios.cells(sheet, models),
    )  # fmt: skip


def _table(title: str) -> RichTable:
    return RichTable(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip


def _gain(row: Row) -> str:
    """Gain in held-out trust over the best single variant, with half its interval."""
    if BEST_SINGLE not in row.gains:
        return ""
    gain = row.gains[BEST_SINGLE]["trust"]
    return f"{gain.estimate:+.1f} \u00b1{(gain.high - gain.low) / 2:.1f}"
