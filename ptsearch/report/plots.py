"""Figures as HTML pages that need no network (plotly); of the Pareto front also a PNG."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from ptsearch.report.rows import Row, shown_benchmarks
from ptsearch.scoring.scores import Scores
from ptsearch.search.objectives import OBJECTIVES, costs
from ptsearch.shared import Floats

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FRONT, TRIAL, DENSE, SINGLE = "#0b6e4f", "#b8c4c2", "#c1121f", "#e09f3e"
KINDS = (  # kind of row, colour, marker of matplotlib, of plotly, size
    ("single", SINGLE, "^", "triangle-up", 34),
    ("front", FRONT, "o", "circle", 40),
    ("dense", DENSE, "*", "star", 130),
    ("baseline", DENSE, "s", "square", 50),
)
MAX_HOVER = 12  # members listed
HEAT_COLUMNS = 3
DIVERGING = "RdBu_r"  # red: errors coincide, blue: they exclude each other
UNDEFINED = "#bdbdbd"  # NaN; 0 is white


def draw_front_png(trials: Sequence[Scores], rows: Sequence[Row], path: Path, title: str) -> None:
    """Trust over each other objective, all trials behind the front."""
    from matplotlib.figure import Figure

    names = _x_axes()
    figure = Figure(figsize=(5.5 * len(names), 4.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True)
    for axes, x in zip(panels, names, strict=True):
        axes.scatter(
            [trial[x] for trial in trials], [trial["trust"] for trial in trials],
            s=14, color=TRIAL, label=f"trials ({len(trials)})",
        )  # fmt: skip
        for kind, colour, marker, _, size in KINDS:
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


def draw_front(trials: Sequence[Scores], rows: Sequence[Row], path: Path, title: str) -> None:
    """The same with each ensemble's members and scores on hovering."""
    from plotly.subplots import make_subplots

    names = _x_axes()
    figure = make_subplots(1, len(names), shared_yaxes=True, horizontal_spacing=0.04)
    for column, x in enumerate(names, start=1):
        first = column == 1
        figure.add_scatter(
            x=[t[x] for t in trials], y=[t["trust"] for t in trials], mode="markers",
            marker={"color": TRIAL, "size": 6}, name=f"trials ({len(trials)})", hoverinfo="skip",
            legendgroup="trials", showlegend=first, row=1, col=column,
        )  # fmt: skip
        for kind, colour, _, symbol, size in KINDS:
            of_kind = [row for row in rows if row.kind == kind]
            figure.add_scatter(
                x=[row.search[x] for row in of_kind], y=[row.search["trust"] for row in of_kind],
                marker={"color": colour, "size": size**0.5 * 1.3, "symbol": symbol},
                mode="markers", name=f"{kind} ({len(of_kind)})", legendgroup=kind,
                showlegend=first, text=[_hover(row) for row in of_kind], hoverinfo="text",
                row=1, col=column,
            )  # fmt: skip
        figure.update_xaxes(title_text=_title(x), row=1, col=column)
    figure.update_yaxes(title_text=_title("trust"), row=1, col=1)
    _write(figure, path, title, height=520)


def draw_regret(shares: Sequence[float], path: Path, title: str) -> None:
    """What the trials so far miss of the exact front's hypervolume; `shares` of it in percent."""
    import plotly.graph_objects as go

    missing = [round(100 - share, 4) for share in shares]
    trials = list(range(1, len(shares) + 1))
    figure = go.Figure(go.Scatter(x=trials, y=missing, line={"shape": "hv", "color": FRONT}))
    figure.update_xaxes(title_text="trial")
    figure.update_yaxes(title_text="missing hypervolume of the exact front (%)")
    _write(figure, path, title, height=520)


def draw_heat_maps(
    matrices: Mapping[str, Floats], names: Sequence[str], path: Path, title: str
) -> None:
    """One panel per matrix (names, names) of correlations, from -1 to 1; NaN is grey."""
    from plotly.subplots import make_subplots

    rows, side = ceil(len(matrices) / HEAT_COLUMNS), 260 + 12 * len(names)
    figure = make_subplots(
        rows, HEAT_COLUMNS, subplot_titles=list(matrices), horizontal_spacing=0.12,
        vertical_spacing=0.25 / rows,
    )  # fmt: skip
    for i, matrix in enumerate(matrices.values()):
        figure.add_heatmap(
            z=matrix.round(3), x=list(names), y=list(names),
            coloraxis="coloraxis", hovertemplate="%{y}<br>%{x}<br>%{z:.2f}<extra></extra>",
            row=i // HEAT_COLUMNS + 1, col=i % HEAT_COLUMNS + 1,
        )  # fmt: skip
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(
        plot_bgcolor=UNDEFINED, coloraxis={"colorscale": DIVERGING, "cmin": -1, "cmax": 1}
    )
    _write(figure, path, title, height=rows * side + 80)


def _x_axes() -> list[str]:
    """The objectives that trust is drawn over, a panel for each."""
    return [name for name in OBJECTIVES if name != "trust"]


def _title(name: str) -> str:
    return f"{name.removesuffix('_gb').removesuffix('_ms')} ({OBJECTIVES[name].unit}, search half)"


def _write(figure: "Figure", path: Path, title: str, height: int) -> None:
    title = title.replace("\n", "<br>")
    figure.update_layout(title=title, height=height, template="plotly_white")
    figure.write_html(path, include_plotlyjs=True)


def _hover(row: Row) -> str:
    scores = row.search
    names = ("trust", *shown_benchmarks(scores), "refusal_rate")
    lines = [f"{name}: {scores[name]:.1f}" for name in names]
    lines += [f"{name}: {scores[name]:.{OBJECTIVES[name].digits}f}" for name in costs()]
    if row.holdout:
        lines.append(f"trust held out: {row.holdout['trust']:.1f}")
    lines += [
        f"gain over {baseline}: {by_score['trust'].estimate:+.1f} "
        f"({by_score['trust'].low:+.1f} to {by_score['trust'].high:+.1f})"
        for baseline, by_score in row.gains.items()
    ]
    members = row.members[:MAX_HOVER] if len(row.members) > 1 else [row.name]
    return "<br>".join([*members, "", *lines])
