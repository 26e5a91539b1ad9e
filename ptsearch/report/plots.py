"""The Pareto front as a PNG, which needs no browser; the page of a study draws the rest."""

from collections.abc import Sequence
from pathlib import Path

from ptsearch.report.rows import Row
from ptsearch.scoring.scores import Scores
from ptsearch.search.objectives import OBJECTIVES

FRONT, TRIAL, DENSE, SINGLE = "#0b6e4f", "#b8c4c2", "#c1121f", "#e09f3e"
KINDS = (  # kind of row, colour, marker, size
    ("single", SINGLE, "^", 34),
    ("front", FRONT, "o", 40),
    ("dense", DENSE, "*", 130),
    ("baseline", DENSE, "s", 50),
)


def draw_front_png(trials: Sequence[Scores], rows: Sequence[Row], path: Path, title: str) -> None:
    """Trust over each other objective, all trials behind the front."""
    from matplotlib.figure import Figure

    names = [name for name in OBJECTIVES if name in rows[0].search and name != "trust"
             and OBJECTIVES[name].on]  # fmt: skip
    figure = Figure(figsize=(5.5 * len(names), 4.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for axes, x in zip(panels, names, strict=True):
        axes.scatter(
            [trial[x] for trial in trials], [trial["trust"] for trial in trials],
            s=14, color=TRIAL, label=f"trials ({len(trials)})",
        )  # fmt: skip
        for kind, colour, marker, size in KINDS:
            of_kind = [row.search for row in rows if row.kind == kind]
            if of_kind:
                axes.scatter(
                    [scores[x] for scores in of_kind], [scores["trust"] for scores in of_kind],
                    s=size, color=colour, marker=marker, label=f"{kind} ({len(of_kind)})", zorder=3,
                )  # fmt: skip
        axes.set_xlabel(_title(x))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(_title("trust"))
    panels[0].legend(frameon=False, loc="best", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=140)


def _title(name: str) -> str:
    return f"{name.removesuffix('_gb').removesuffix('_ms')} ({OBJECTIVES[name].unit}, search half)"
