"""The Pareto front as a picture: plotly for the browser, matplotlib for a PNG without one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ptsearch.report.rows import Row
from ptsearch.scoring.scores import Scores

FRONT, TRIAL, DENSE, SINGLE = "#0b6e4f", "#b8c4c2", "#c1121f", "#e09f3e"
TITLES = {
    "trust": "trust (search half, %)",
    "mmlu": "MMLU (search half, %)",
    "memory_gb": "memory (GB)",
    "latency_ms": "latency (ms)",
}
MAX_HOVER = 12
SYMBOLS = {"^": "triangle-up", "o": "circle", "*": "star", "s": "square"}  # matplotlib's in plotly


def draw_png(trials: Sequence[Scores], rows: Sequence[Row], path: Path, title: str) -> None:
    """Trust over memory and over MMLU, all trials behind the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained")
    both = figure.subplots(1, 2, sharey=True)
    for axes, x in zip(both, ("memory_gb", "mmlu"), strict=True):
        axes.scatter(
            [trial[x] for trial in trials], [trial["trust"] for trial in trials],
            s=14, color=TRIAL, label=f"trials ({len(trials)})",
        )  # fmt: skip
        for kind, colour, marker, size in _kinds():
            of_kind = [row for row in rows if row.kind == kind]
            if of_kind:
                axes.scatter(
                    [row.search[x] for row in of_kind], [row.search["trust"] for row in of_kind],
                    s=size, color=colour, marker=marker, label=f"{kind} ({len(of_kind)})", zorder=3,
                )  # fmt: skip
        axes.set_xlabel(TITLES[x])
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    both[0].set_ylabel(TITLES["trust"])
    both[0].legend(frameon=False, loc="best", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=140)


def draw_html(trials: Sequence[Scores], rows: Sequence[Row], path: Path, title: str) -> None:
    """The same, to hover over; the file holds all it needs and asks no network."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    figure = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04)
    for column, x in enumerate(("memory_gb", "mmlu"), start=1):
        shown = column == 1
        figure.add_scatter(
            x=[t[x] for t in trials], y=[t["trust"] for t in trials], mode="markers",
            marker={"color": TRIAL, "size": 6}, name=f"trials ({len(trials)})", hoverinfo="skip",
            legendgroup="trials", showlegend=shown, row=1, col=column,
        )  # fmt: skip
        for kind, colour, shape, size in _kinds():
            of_kind = [row for row in rows if row.kind == kind]
            marker = go.scatter.Marker(color=colour, size=size**0.5 * 1.3, symbol=SYMBOLS[shape])
            figure.add_scatter(
                x=[row.search[x] for row in of_kind], y=[row.search["trust"] for row in of_kind],
                mode="markers", marker=marker, name=f"{kind} ({len(of_kind)})", legendgroup=kind,
                showlegend=shown, text=[_hover(row) for row in of_kind], hoverinfo="text",
                row=1, col=column,
            )  # fmt: skip
        figure.update_xaxes(title_text=TITLES[x], row=1, col=column)
    figure.update_yaxes(title_text=TITLES["trust"], row=1, col=1)
    title = title.replace("\n", "<br>")
    figure.update_layout(title=title, template="plotly_white", height=520)
    figure.write_html(path, include_plotlyjs=True)


def draw_regret(found: Sequence[float], reachable: Sequence[float], path: Path, title: str) -> None:
    """PNG of what is missing of the true front's hypervolume, by trial: with what the trials found,
    and with all ensembles of the variants evaluated by then. Both arguments are shares in percent.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.subplots()
    for shares, label, colour in (
        (found, f"trials of the sampler, at last {100 - found[-1]:.1f} %", FRONT),
        (reachable, "all ensembles of the variants evaluated so far", SINGLE),
    ):
        missing = [100 - share for share in shares]
        axes.step(range(1, len(shares) + 1), missing, where="post", color=colour, label=label)
    axes.set_xlabel("trial")
    axes.set_ylabel("missing of the true front's hypervolume (%)")
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 1, 10, 100], ["0", "1", "10", "100"])
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)


def draw_curves(
    curves: Sequence[tuple[NDArray[Any], NDArray[Any]]], path: Path, title: str
) -> None:
    """PNG of risk over coverage, percent, one line an ensemble."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.4), layout="constrained")
    axes = figure.subplots()
    for coverage, risk in curves:
        axes.plot(coverage, risk, marker=".", color=FRONT, alpha=0.4)
    axes.set_xlabel("coverage (%)")
    axes.set_ylabel("risk: wrong among the answered (%)")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title)
    figure.savefig(path, dpi=140)


def _kinds() -> list[tuple[str, str, str, int]]:
    return [
        ("single", SINGLE, "^", 34),
        ("front", FRONT, "o", 40),
        ("dense", DENSE, "*", 130),
        ("baseline", DENSE, "s", 50),
    ]


def _hover(row: Row) -> str:
    scores: Mapping[str, float] = {key: v for key, v in row.search.items() if "/" not in key}
    first = ("trust", "mmlu", "adversarial", "fairness", "ethics", "ood", "refusal_rate")
    lines = [f"{key}: {scores[key]:.1f}" for key in first if key in scores]
    lines += [f"memory: {scores['memory_gb']:.3f} GB", f"latency: {scores['latency_ms']:.0f} ms"]
    if row.holdout:
        lines.append(f"trust held out: {row.holdout['trust']:.1f}")
    lines += [
        f"gain over {baseline}: {by_score['trust'].estimate:+.1f} "
        f"({by_score['trust'].low:+.1f} to {by_score['trust'].high:+.1f})"
        for baseline, by_score in row.gains.items()
    ]
    named = row.members[:MAX_HOVER] if len(row.members) > 1 else [row.name]
    return "<br>".join([*named, "", *lines])
