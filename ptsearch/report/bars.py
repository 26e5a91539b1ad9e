"""Grouped bar charts: plotly for the browser, matplotlib for a PNG without one."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

COLOURS = (
    "#c1121f", "#0b6e4f", "#e09f3e", "#33658a", "#7b2d8b", "#86bbd8", "#9bc53d", "#f26419",
    "#5c4742", "#2a9d8f", "#d081a8", "#8d99ae", "#bc6c25", "#3a0ca3", "#606c38", "#adb5bd",
)  # fmt: skip


class Panel(NamedTuple):
    """One chart: for each bar's name its values by group; a missing value leaves a gap."""

    title: str
    bars: Mapping[str, Mapping[str, float]]
    top: float = 100.0  # of the axis


def draw_png(panels: Sequence[Panel], groups: Sequence[str], path: Path, title: str) -> None:
    """The panels below each other, in percent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 0.6 + 3.6 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    colours = _colours(panels)
    for axes, panel in zip(
        figure.subplots(len(panels), 1, squeeze=False)[:, 0], panels, strict=True
    ):
        width = 0.84 / max(len(panel.bars), 1)
        for i, (name, values) in enumerate(panel.bars.items()):
            places = [g - 0.42 + (i + 0.5) * width for g in range(len(groups))]
            heights = [values.get(group, math.nan) for group in groups]
            axes.bar(places, heights, width, color=colours[name], label=name)
        axes.set_xticks(range(len(groups)), groups)
        axes.set_ylim(0, panel.top)
        axes.set_title(panel.title, loc="left", fontsize=10)
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.suptitle(title)
    figure.savefig(path, dpi=130)


def draw_html(panels: Sequence[Panel], groups: Sequence[str], path: Path, title: str) -> None:
    """The same, to hover over; the file holds all it needs and asks no network."""
    from plotly.subplots import make_subplots

    figure = make_subplots(
        len(panels), 1, subplot_titles=[panel.title for panel in panels], vertical_spacing=0.12
    )
    colours, known = _colours(panels), set[str]()
    names = [group.replace("\n", "<br>") for group in groups]
    for row, panel in enumerate(panels, start=1):
        for name, values in panel.bars.items():
            figure.add_bar(
                x=names, y=[values.get(group) for group in groups], name=name, legendgroup=name,
                marker_color=colours[name], showlegend=name not in known, row=row, col=1,
                hovertemplate="%{y:.1f}",
            )  # fmt: skip
            known.add(name)
        figure.update_yaxes(range=[0, panel.top], row=row, col=1)
    figure.update_layout(
        title=title, template="plotly_white", barmode="group", height=110 + 330 * len(panels)
    )
    figure.write_html(path, include_plotlyjs=True)


def _colours(panels: Sequence[Panel]) -> dict[str, str]:
    """One colour a name, the same in every panel."""
    names = dict.fromkeys(name for panel in panels for name in panel.bars)
    return {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
