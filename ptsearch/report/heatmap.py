"""Matrices of correlations: plotly for the browser, matplotlib for a PNG without one."""

from collections.abc import Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

COLUMNS = 3
COLOURS = "RdBu_r"  # diverging: red = together, blue = against each other
NOTHING = "#bdbdbd"  # NaN, told apart from the white of 0


def draw_png(
    panels: Mapping[str, NDArray[Any]], names: Sequence[str], path: Path, title: str
) -> None:
    """One panel a matrix (names, names), from -1 to 1; NaN is grey."""
    from matplotlib.figure import Figure

    rows, side = ceil(len(panels) / COLUMNS), 2.2 + 0.14 * len(names)
    figure = Figure(figsize=(COLUMNS * side, rows * side + 0.5), layout="constrained")
    every = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
    for axes in every[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, matrix) in zip(every, panels.items(), strict=False):
        image = axes.imshow(matrix, cmap=COLOURS, vmin=-1, vmax=1)
        axes.set_facecolor(NOTHING)
        axes.set_title(name, loc="left", fontsize=10)
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axes.set_yticks(range(len(names)), names, fontsize=6)
    figure.colorbar(image, ax=every.tolist(), shrink=0.6)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def draw_html(
    panels: Mapping[str, NDArray[Any]], names: Sequence[str], path: Path, title: str
) -> None:
    """The same, to hover over; the file holds all it needs and asks no network."""
    from plotly.subplots import make_subplots

    rows, side = ceil(len(panels) / COLUMNS), 260 + 12 * len(names)
    figure = make_subplots(
        rows, COLUMNS, subplot_titles=list(panels), horizontal_spacing=0.12,
        vertical_spacing=0.25 / rows,
    )  # fmt: skip
    for place, matrix in enumerate(panels.values()):
        figure.add_heatmap(
            z=matrix.round(3), x=list(names), y=list(names),
            coloraxis="coloraxis", hovertemplate="%{y}<br>%{x}<br>%{z:.2f}<extra></extra>",
            row=place // COLUMNS + 1, col=place % COLUMNS + 1,
        )  # fmt: skip
    figure.update_xaxes(showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(
        title=title, template="plotly_white", height=rows * side + 80, plot_bgcolor=NOTHING,
        coloraxis={"colorscale": COLOURS, "cmin": -1, "cmax": 1},
    )  # fmt: skip
    figure.write_html(path, include_plotlyjs=True)
