"""The paper's experiments, made ready for people: tables, bar charts, CSV, MLflow."""

import csv
import json
import math
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from ptsearch.config import CONF, Config, ModelConfig
from ptsearch.report import bars, scenarios, terminal, tracking
from ptsearch.report import rows as results
from ptsearch.report.paper import Line, Outcome, columns, over_best
from ptsearch.report.rows import BEST_SINGLE
from ptsearch.report.tracking import Tracker
from ptsearch.scoring.scores import MMLU, Scores
from ptsearch.search.comparisons import Gain
from ptsearch.search.study import study_config

PUBLISHED = CONF / "published/published.csv"
NAMES = {"adversarial": "adv", "fairness": "fair", "ethics": "ethics", "ood": "ood", MMLU: "MMLU"}
ORDER = {  # fairness last where the paper does not have it
    "benchmark": ("adversarial", "fairness", "ethics", "ood", MMLU),
    "paper": ("adversarial", "ethics", "ood", MMLU, "fairness"),
}
NOT_IN_THE_PAPER = "not in\nthe paper"
BESIDE = 2  # ensembles or single variants in the table of scenarios; the CSV has all
BLOCKS = (  # of the tables
    ("precisions",),
    ("seeds",),
    ("dense", "baseline", "best_all", "best_search"),
    ("single",),
)


def log(tracker: Tracker, config: Config, outcome: Outcome) -> str:
    """A nested run for each line; on the parent run the CSV, the chart and the config.

    The link to MLflow's page that compares the lines.
    """
    study = study_config(config)
    ids = {}
    for line in outcome.lines:
        ids[line.name] = tracking.log_trial(
            tracker,
            name=line.name,
            params={"members": " + ".join(line.members), "size": len(line.members)},
            metrics=columns(line),
            tags={"kind": line.kind},
        )
    with tempfile.TemporaryDirectory() as folder:
        html, png, table, beside, resolved, data = files = [
            Path(folder, name)
            for name in (
                f"{study.kind}.html",
                f"{study.kind}.png",
                f"{study.kind}.csv",
                "scenarios.csv",
                "config.json",
                "data.json",
            )
        ]
        groups = [_heading(study.kind, key) for key in ORDER[study.kind]]
        title = f"{study.name}: {config.model.name}, {config.benchmarks.name} benchmarks, "
        title += f"rules {config.benchmarks.rules}"
        for draw, path in ((bars.draw_html, html), (bars.draw_png, png)):
            draw(panels(study.kind, outcome), groups, path, title)
        write_csv(outcome, ids, table)
        scenarios.write(outcome.scenarios, beside)
        resolved.write_text(json.dumps(asdict(config), indent=2), encoding="utf-8")
        data.write_text(json.dumps(outcome.data, indent=2), encoding="utf-8")
        tracking.finish(
            tracker,
            params=config.choices(),
            metrics={"lines": len(outcome.lines)},
            files=files,
            note="\n\n".join(notes(config, outcome)),
        )
    return tracking.compare_link(tracker, ids.values())


def show(screen: Console, link: str, config: Config, outcome: Outcome) -> None:
    """Tables of scores and gains, published figures of the model, and where to look further."""
    kind = study_config(config).kind
    blocks = [block for kinds in BLOCKS if (block := outcome.of(*kinds))]
    heads = [_heading(kind, key) for key in ORDER[kind]]
    cells = [[_all_cells(kind, line) for line in block if "all" in line.scores] for block in blocks]
    terminal.show_grid(
        screen, "All data: score (refusal rate)",
        ["", "trust", *heads, "fair\nacc.", "weights,\n% of dense"], cells,
    )  # fmt: skip
    scorers = [
        [_half_cells(kind, line) for line in block if "search" in line.scores] for block in blocks
    ]
    terminal.show_grid(
        screen, "Search half | held-out half", ["", "trust", *heads, "GB", "ms"], scorers
    )
    gained = _gain_blocks(kind, outcome)
    if gained:
        terminal.show_grid(
            screen, "Gains in points, with simultaneous 95 % intervals on the held-out half",
            ["", "trust", *heads], gained,
        )  # fmt: skip
    compared = [line.name for line in outcome.lines if line.kind in ("dense", "baseline")]
    others = outcome.of("precisions", "seeds") or outcome.of("single")
    compared += [line.name for line in others][:BESIDE]
    terminal.show_scenarios(screen, "all data", outcome.scenarios, compared)
    printed = published(config.model)
    if printed:
        terminal.show_grid(
            screen, f"Published for {config.model.name}: score (refusal rate)",
            ["", "rules", "runs", *(NAMES[key] for key in ORDER[kind])],
            [[_published_cells(kind, row) for row in printed]],
        )  # fmt: skip
    for line in notes(config, outcome):
        screen.print(line, style="dim")
    screen.print("\nmake ui, then compare:", soft_wrap=True)
    screen.print(link, soft_wrap=True, style="bold")


def panels(kind: str, outcome: Outcome) -> list[bars.Panel]:
    """What the chart shows: scores on all data; below it what the experiment is about."""
    if kind == "benchmark":
        refused = _bars(kind, outcome.lines, "all", ".refusal_rate")
        most = max((rate for rates in refused.values() for rate in rates.values()), default=0)
        return [
            bars.Panel("score, all data (%)", _bars(kind, outcome.lines, "all", "")),
            bars.Panel("refusal rate, all data (%)", refused, top=max(10, min(100, 1.2 * most))),
        ]
    compared = outcome.of("precisions", "seeds", "dense", "baseline", "best_all", "best_search")
    return [
        bars.Panel("score, all data (%)", _bars(kind, compared, "all", "")),
        bars.Panel("score, held-out half (%)", _bars(kind, compared, "holdout", "")),
    ]


def _bars(kind: str, lines: Iterable[Line], half: str, end: str) -> dict[str, dict[str, float]]:
    return {
        line.name: {
            _heading(kind, key): line.scores[half][key + end]
            for key in ORDER[kind]
            if key + end in line.scores[half]
        }
        for line in lines
        if half in line.scores
    }


def write_csv(outcome: Outcome, run_ids: dict[str, str], path: Path) -> None:
    """Every number of every line."""
    (best,) = outcome.of("best_all") or (None,)
    rows: list[dict[str, str | int | float]] = []
    for line in outcome.lines:
        numbers = columns(line)
        if best and line.kind in ("precisions", "seeds"):
            over = over_best(line, best)
            numbers |= {f"all.gain.{BEST_SINGLE}.{key}": value for key, value in over.items()}
        rows.append(
            {
                "kind": line.kind,
                "name": line.name,
                "members": " + ".join(line.members),
                **numbers,
                "chosen": " ".join(f"{key}={name}" for key, name in line.chosen.items()),
                "unskilled": " ".join(line.unskilled),
                "run_id": run_ids[line.name],
            }
        )
    results.write_rows(rows, path)


def notes(config: Config, outcome: Outcome) -> list[str]:
    """How to read the tables."""
    found = ["all scores in percent; a choice made on the held-out half, as shown here, uses it up"]
    ensembles = outcome.of("precisions", "seeds")
    if ensembles:
        found.append(
            "best single: score by score the best variant; chosen on all data it is scored on what "
            "chose it, as published"
        )
        found.append("fairness is not among the paper's ensemble results; trust includes it")
        found += [f"{line.name} stores {line.weights_percent:.0f} % of the dense model's bytes"
                  for line in outcome.of("precisions")]  # fmt: skip
    found += [_verdict(line) for line in ensembles if line.gains]
    if any(line.unskilled for line in outcome.lines):
        found.append("* in some benchmark no better than one constant answer")
    if published(config.model):
        other = _other_than_published(config, outcome)
        found.append(
            "published: Decoding Compressed Trust (rules ct, fairness refusals to the nearest 10) "
            "and DecodingTrust (dt)"
            + (f"; not comparable with this run: {', '.join(other)}" if other else "")
        )
    return found + outcome.remarks


def _other_than_published(config: Config, outcome: Outcome) -> list[str]:
    """In what a run differs from the published ones of its model."""
    asked = config.benchmarks
    gaps = ("AdvGLUE++", "left out by")  # of the notes about data
    missing = any(gap in remark for remark in outcome.remarks for gap in gaps)
    return [
        *([f"benchmarks={asked.name}"] if asked.name != "paper" else []),
        *([f"benchmarks.rules={asked.rules}"] if asked.rules == "clean" else []),
        *([f"benchmarks.limit={asked.limit}"] if asked.limit else []),
        *(["scenarios are missing"] if missing else []),
    ]


def _verdict(line: Line) -> str:
    """Over which model an ensemble's gain is evident, and in what."""
    said = []
    for baseline, by_key in line.gains.items():
        better = [NAMES.get(key, key) for key, gain in by_key.items() if gain.is_evident]
        name = _over(baseline)
        said.append(f"{name}: {', '.join(better)}" if better else f"{name}: no evidence of a gain")
    return f"{line.name} over " + "; ".join(said)


def published(model: ModelConfig) -> list[dict[str, str]]:
    """Rows of `published.csv` about the model, found by its hub repository or its name."""
    with PUBLISHED.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if model.repo == row["repo"] or model.name == row["name"]]


def _heading(kind: str, key: str) -> str:
    outside = kind == "paper" and key == "fairness"
    return f"{NAMES[key]}\n{NOT_IN_THE_PAPER}" if outside else NAMES[key]


def _all_cells(kind: str, line: Line) -> list[str]:
    found = line.scores.get("all", {})
    return [
        line.name + (" *" if line.unskilled else ""),
        _number(found, "trust"),
        *(_with_refusals(found, key) for key in ORDER[kind]),
        _number(found, "fairness.accuracy"),
        "" if math.isnan(line.weights_percent) else f"{line.weights_percent:.0f}",
    ]


def _half_cells(kind: str, line: Line) -> list[str]:
    search, held = line.scores.get("search", {}), line.scores.get("holdout", {})
    both = [
        f"{_number(search, key)} | {_number(held, key)}" if key in search else ""
        for key in ("trust", *ORDER[kind])
    ]
    cost = [f"{search[key]:{form}}" if key in search else ""
            for key, form in (("memory_gb", ".3f"), ("latency_ms", ".0f"))]  # fmt: skip
    return [line.name, *both, *cost]


def _gain_blocks(kind: str, outcome: Outcome) -> list[list[list[str]]]:
    """For each ensemble a block: over each dense model, over the best single, as published."""
    blocks = []
    keys = ("trust", *ORDER[kind])
    for line in outcome.of("precisions", "seeds"):
        block = [[line.name, *("" for _ in keys)]]
        block += [
            [f"  over {_over(baseline)}", *(_gain(found.get(key)) for key in keys)]
            for baseline, found in line.gains.items()
        ]
        for best in outcome.of("best_all"):
            over = over_best(line, best)
            cells = [f"{over[key]:+.1f}" if key in over else "" for key in keys]
            block.append(["  as published: best single, all data", *cells])
        blocks.append(block)
    return blocks


def _over(baseline: str) -> str:
    return "best single on search" if baseline == BEST_SINGLE else baseline


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return ""
    return f"{gain.estimate:+.1f} \u00b1{(gain.high - gain.low) / 2:.1f}"


def _with_refusals(found: Scores, key: str) -> str:
    refused = f"{key}.refusal_rate"
    return _number(found, key) + (f" ({_number(found, refused)})" if refused in found else "")


def _number(found: Scores, key: str) -> str:
    return f"{found[key]:.1f}" if key in found else ""


def _published_cells(kind: str, row: dict[str, str]) -> list[str]:
    cells = []
    for key in ORDER[kind]:
        spread = f" \u00b1{row[f'{key}.sd']}" if row.get(f"{key}.sd") else ""
        refused = f" ({row[f'{key}.refusal_rate']})" if row.get(f"{key}.refusal_rate") else ""
        cells.append(row[key] + spread + refused)
    return [row["variant"], row["rules"], row["runs"], *cells]
