"""Draw the front of a finished study: python examples/plot_front.py front.csv front.png

`front.csv` is an artifact of the study's MLflow run; `holdout.*` is the half that chose nothing.
"""

import csv
import sys
from pathlib import Path

from matplotlib.figure import Figure

LEAST_TRUST = 65  # variants below it would squeeze the rest of the picture


def main(table: Path, picture: Path) -> None:
    with table.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["trust"]) >= LEAST_TRUST]
    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for kind, single, colour, marker, size, label in (
        ("single", True, "#e09f3e", "^", 46, "single variants"),
        ("front", False, "#0b6e4f", "o", 40, "ensembles on the front"),
        ("dense", True, "#c1121f", "*", 190, "dense model"),
    ):
        chosen = [row for row in rows if row["kind"] == kind and (row["size"] == "1") == single]
        memory = [float(row["memory_gb"]) for row in chosen]
        trust = [float(row["trust"]) for row in chosen]
        held_out = [float(row["holdout.trust"] or "nan") for row in chosen]
        axes.scatter(memory, trust, s=size, color=colour, marker=marker, label=label, zorder=3)
        axes.vlines(memory, held_out, trust, color=colour, alpha=0.25, linewidth=1)
        axes.scatter(memory, held_out, s=14, facecolor="white", edgecolor=colour, zorder=2)
    axes.scatter([], [], s=14, facecolor="white", edgecolor="grey", label="held-out half")
    axes.set(xlabel="memory (GB, weights and KV cache)", ylabel="trust (%)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower right")
    figure.savefig(picture, dpi=160)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
