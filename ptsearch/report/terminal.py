"""The terminal: progress bars during a job, tables at its end."""

import math
import sys
import time
from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from ptsearch.evaluation.cache import Entry
from ptsearch.report.rows import (
    BEST_SINGLE,
    DENSE_MODEL,
    Row,
    ScenarioScores,
    shown_benchmarks,
)
from ptsearch.scoring.scores import MMLU, Scores
from ptsearch.search.comparisons import Gain, losses
from ptsearch.search.objectives import OBJECTIVES, costs

WIDTH = 118  # where the output is no terminal
SHORT = {"adversarial": "adv", "fairness": "fair", MMLU: "MMLU"}  # heads of columns; others in full
GAP = 2  # spaces between columns
# Columns to leave out where the terminal is narrow, the first first.
DROPPED = ("refused", "ms", "gain", "ood", "ethics", "fair", "adv", "GB")
MIN_NAME = 16  # of the column of names, in a narrow terminal
MODELS = 4  # in the table of scenarios; its CSV has all
SCENARIO_HEADS = ("samples", "majority\nclass", "constant\nanswer")


def console(stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else WIDTH
    return Console(width=width, highlight=False, markup=False, stderr=stderr)


def head(benchmark: str) -> str:
    return SHORT.get(benchmark, benchmark)


def show_rows(
    screen: Console, title: str, rows: Sequence[Row], dense_gb: float, own: Sequence[Row] = ()
) -> None:
    """Each row's name on a line of its own, under it scores of the search half, trust and MMLU of
    the held-out half (`held`) too, costs; memory also in percent of the dense model's. Columns that
    do not fit are left out in the order of `DROPPED`. A gain over itself is not shown: `own`.
    """
    benchmarks = shown_benchmarks(rows[0].search) if rows else []
    heads = ["trust", "held", "gain", *map(head, benchmarks), "held", "refused",
             *(OBJECTIVES[name].unit for name in costs()), "mem %"]  # fmt: skip
    same = {row.members for row in own}
    cells = [_cells(row, benchmarks, dense_gb, row.members in same) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    kept = _fitting(heads, widths, screen.width)

    def line(texts: Sequence[str]) -> str:
        return " " + "".join(f"{texts[i]:>{widths[i] + GAP}}" for i in kept)

    screen.print(f"\n{title}", style="bold")
    screen.print(line(heads), style="dim")
    for row, texts in zip(rows, cells, strict=True):
        screen.print(_name_line(row), style="" if row.kind == "front" else "dim")
        screen.print(line(texts), style="" if row.kind == "front" else "dim")


def _fitting(heads: Sequence[str], widths: Sequence[int], room: int) -> list[int]:
    """Positions of the columns that fit into `room` characters."""
    kept = list(range(len(heads)))
    for name in DROPPED:
        if 1 + sum(widths[i] + GAP for i in kept) <= room:
            break
        kept = [i for i in kept if heads[i] != name]
    return kept


def _name_line(row: Row) -> Text:
    """The name, and after it which pick it is and what it is proven to lose against dense."""
    line = Text(starred(row), overflow="fold")
    if lost := losses(row.gains.get(DENSE_MODEL, {})):
        line.append(f"  loses {', '.join(lost)}", style="red")
    if row.picks:
        line.append(f"  <- {', '.join(row.picks)}", style="bold green")
    return line


def _cells(row: Row, benchmarks: Sequence[str], dense_gb: float, is_own: bool) -> list[str]:
    scores = row.search
    gain = None if is_own else row.gains.get(BEST_SINGLE, {}).get("trust")
    return [
        number(scores, "trust"),
        number(row.holdout, "trust"),
        gain_cell(gain),
        *(number(scores, name) for name in benchmarks),
        number(row.holdout, MMLU),
        number(scores, "refusal_rate"),
        *(_cost(scores[name], OBJECTIVES[name].digits) for name in costs()),
        f"{100 * scores['memory_gb'] / dense_gb:.0f}",
    ]


def _cost(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"  # not measured on the target


def starred(row: Row) -> str:
    """The name, with a star where a benchmark shows no skill."""
    return row.name + (" *" if row.unskilled else "")


def number(scores: Scores | None, key: str) -> str:
    return f"{scores[key]:.1f}" if scores and key in scores else ""


def gain_cell(gain: Gain | None) -> str:
    """A gain in points with half its interval."""
    if gain is None:
        return ""
    return f"{gain.estimate:+.1f} \u00b1{(gain.high - gain.low) / 2:.1f}"


def show_facts(screen: Console, title: str, facts: Mapping[str, str]) -> None:
    """One line per fact."""
    table = RichTable(title=title, title_justify="left", title_style="bold", box=None,
                      show_header=False, padding=(0, 2, 0, 0))  # fmt: skip
    for name, text in facts.items():
        table.add_row(name, text)
    screen.print(table)


def show_grid(
    screen: Console,
    title: str,
    heads: Sequence[str],
    blocks: Sequence[Sequence[Sequence[str]]],
    styles: Sequence[str] = (),
) -> None:
    """A table of ready texts, the first column a name; a line after each block of rows. `styles`
    are of the rows of the first block.
    """
    table = RichTable(
        title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD,
        pad_edge=False, padding=(0, 1, 0, 0),
    )  # fmt: skip
    table.add_column(heads[0], overflow="fold", ratio=1, min_width=MIN_NAME)
    for name in heads[1:]:
        table.add_column(name, justify="right", no_wrap=True)
    for block in blocks:
        for i, row in enumerate(block):
            table.add_row(*row, style=styles[i] if styles else None)
        table.add_section()
    screen.print(table)


def show_scenarios(screen: Console, scenarios: ScenarioScores) -> None:
    """The scores of the first models per scenario, with those that need no model."""
    models = list(scenarios.models)[:MODELS]
    title = f"Scenarios, {scenarios.samples}: score (accuracy), with baselines that need no model"
    heads = ["", *SCENARIO_HEADS, *models]
    show_grid(screen, title, heads, scenario_cells(scenarios, models))


def scenario_cells(scenarios: ScenarioScores, models: Sequence[str]) -> list[list[list[str]]]:
    """One block of rows per benchmark. A scenario that is not scored is in brackets."""
    blocks: dict[str, list[list[str]]] = {}
    for name, free in scenarios.without_model.items():
        row = [
            name if free["scored"] else f"({name})",
            f"{free['samples']:.0f}",
            f"{free['majority']:.1f}",
            f"{free['constant']:.1f}",
        ]
        row += [_with_accuracy(scenarios.models[model], name) for model in models]
        blocks.setdefault(name.split("/")[0], []).append(row)
    return list(blocks.values())


def _with_accuracy(scores: Scores, scenario: str) -> str:
    """The score, and the accuracy in brackets where it differs."""
    score, accuracy = scores[scenario], scores.get(f"{scenario}.accuracy")
    return f"{score:.1f}" + ("" if accuracy in (None, score) else f" ({accuracy:.1f})")


def show_cache(screen: Console, found: Sequence[Entry]) -> None:
    """Largest first: what it is, its size, days since it changed, which studies use it."""
    table = RichTable(box=box.SIMPLE_HEAD)
    for heading in ("files of", "MB", "days", "used by"):
        table.add_column(heading, justify="right" if heading in ("MB", "days") else "left")
    for entry in found:
        days = (time.time() - entry.changed) / 86400
        users = ", ".join(entry.studies) or "-"
        table.add_row(entry.label, f"{entry.bytes / 1e6:.1f}", f"{days:.0f}", users)
    screen.print(table)
    screen.print(f"{len(found)} entries, {sum(e.bytes for e in found) / 1e9:.2f} GB")
