"""The page of a study: one HTML file that needs no network, and its samples as Parquet beside it.

Texts and tables are made here from `templates/`; what the browser draws or filters is embedded as
JSON, and where it is large as gzipped base64.
"""

import base64
import gzip
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from ptsearch import store
from ptsearch.config import Config, StudyConfig
from ptsearch.evaluation.table import Table
from ptsearch.report import certificate, samples
from ptsearch.report.rows import BEST_SINGLE, DENSE_MODEL, Row, best_single, shown_benchmarks
from ptsearch.report.study import Parts, Result
from ptsearch.report.terminal import SCENARIO_HEADS, scenario_cells
from ptsearch.scoring.scores import MMLU, Scores
from ptsearch.search import comparisons
from ptsearch.search.comparisons import Gain
from ptsearch.search.exact_front import Everything, enumerate_scores
from ptsearch.search.objectives import OBJECTIVES, costs
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.study import VIEW, Members, limits, study_config
from ptsearch.variant import short_labels

PAGE, SAMPLES = "report.html", "samples.parquet"
MOST_INTERVALS = 60  # rows of which held-out scores have one: the roles, then the front
MOST_ENSEMBLES = 65_535  # embedded; of more, those with the fewest members
SEARCHES = ("pareto", "slo")  # the kinds of study that look at all ensembles
KEPT = tuple(f"study.{name}=" for name in ("min_members", "max_members", "min_skill", "need_skill"))
LIMITED = ("trust", MMLU, "adversarial", "fairness", "ethics", "ood", "refusal_rate", "memory_gb",
           "latency_ms")  # in conf/study/slo.yaml; Hydra adds others  # fmt: skip
TITLES = {MMLU: "MMLU", "ood": "Out of distribution", "refusal_rate": "Refusals",
          "memory_gb": "Memory", "latency_ms": "Latency"}  # fmt: skip
BASELINES = {DENSE_MODEL: "the dense model", BEST_SINGLE: "the best single variant"}
ORDER = (certificate.WORSE, certificate.NO_EVIDENCE, certificate.BETTER)  # losses first


class Score(NamedTuple):
    """A number of every ensemble that can be drawn and limited."""

    key: str
    title: str
    unit: str
    digits: int
    higher: bool  # is better
    limit: str  # the override that limits it
    limited: float | None  # what the study itself limits it to


class Shown(NamedTuple):
    """A row with a role: a pick, the dense model, the best single variant."""

    role: str
    row: Row
    margin: Scores  # half of the interval of each held-out score


def write(table: Table, result: Result, folder: Path) -> list[Path]:
    """The page and its samples in `folder`."""
    parts = scorers(table)
    roles = {_role(row): row for row in result.front if row.picks}
    votes = {role: row.members for role, row in roles.items()}
    found = samples.answered(table, parts, votes)
    with store.new_file(folder / SAMPLES) as part:
        pq.write_table(found.table, part, compression="zstd")
    values = _values(table, parts, result, roles) | {
        "sample_count": len(found.differs),
        "differing": int(found.differs.sum()),
        "samples": _packed(_json(samples.embedded(found)).encode()),
    }
    store.write_text(folder / PAGE, _render(values))
    return [folder / PAGE, folder / SAMPLES]


def _role(row: Row) -> str:
    """The picks that it is; "" = none."""
    return ", ".join(pick.replace("_", " ") for pick in row.picks)


def _render(values: Mapping[str, object]) -> str:
    from plotly.offline import get_plotlyjs

    templates = Environment(
        loader=PackageLoader("ptsearch.report"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    templates.filters |= {"number": _number, "losses_first": _losses_first}
    templates.filters["json"] = lambda value: Markup(_json(value))
    folder = files("ptsearch.report") / "templates"
    own = {name: Markup((folder / f"report.{name}").read_text("utf-8")) for name in ("css", "js")}
    plotly = _packed(get_plotlyjs().encode())
    return templates.get_template("report.html.j2").render(values, plotly=plotly, **own)


def _values(
    table: Table, parts: Parts, result: Result, roles: Mapping[str, Row]
) -> dict[str, object]:
    """What the template shows, but for the samples."""
    settings, dense = study_config(table.config), result.compared[0]
    best = best_single(result.compared)
    named = {**roles, "dense": dense} | ({"best single": best} if best else {})
    rows = list({row.members: row for row in (*named.values(), *result.front)}.values())
    margins = _margins(table, parts["holdout"], rows[:MOST_INTERVALS])
    shown = [Shown(role, row, margins.get(row.members, {})) for role, row in named.items()]
    scores = _scores(settings, dense.search)
    every, incomplete = _everything(table, parts["search"])
    points = [*result.front, *result.compared, *result.singles]
    models = list(result.scenarios.models)
    return {
        "study": settings.name,
        "model": table.base.name,
        "variants": len(table.variants),
        "weights": {_title(name): weight for name, weight in table.config.trust.weights.items()},
        "scores": scores,
        "judged": [score for score in scores if score.key in comparisons.judged(table)],
        "shown": shown,
        "picks": [each for each in shown if each.role in roles],
        "points": points,
        "baselines": BASELINES,
        "reach": _reach(shown),
        "every": every,
        "incomplete": incomplete,
        "masks": _packed(every.masks.astype("<u4").tobytes()) if every else "",
        "columns": _packed(_columns(every, scores).tobytes()) if every else "",
        "result": result,
        "scenarios": [row for block in scenario_cells(result.scenarios, models) for row in block],
        "heads": ["Scenario", *SCENARIO_HEADS, *models],
        "remarks": _remarks(result),
        "nan": math.nan,
        "dense_gb": dense.search["memory_gb"],
        "target": table.config.cost.target,
        "data": {
            "scores": [score._asdict() for score in scores],
            "points": [_point(row, margins, scores) for row in points],
            "labels": [short_labels(table.variants)[x] for x in every.labels] if every else [],
            "commands": [_command(table.config, job) for job in ("+study=slo", "+export=ensemble")],
            "errors": {n: each.tolist() for n, each in result.explained.correlations.items()},
            "variants": result.explained.names,
            "missing": [100 - share for share in result.shares],
        },
    }


def _scores(settings: StudyConfig, found: Scores) -> list[Score]:
    """Trust, the perspectives, MMLU, refusals, then costs."""
    names = ("trust", *shown_benchmarks(found), "refusal_rate", *OBJECTIVES)
    scores = []
    for name in dict.fromkeys(name for name in names if name in found):
        if name in costs() and math.isnan(found[name]):
            continue  # the target was not run
        record = OBJECTIVES.get(name)
        unit, digits = (record.unit, record.digits) if record else ("%", 1)
        higher = record.direction == "maximize" if record else name != "refusal_rate"
        side, given = ("min", settings.min) if higher else ("max", settings.max)
        limit = f"{'' if name in LIMITED else '++'}study.{side}.{name}"
        limited = limits(given).get(name)
        scores.append(Score(name, _title(name), unit, digits, higher, limit, limited))
    return scores


def _title(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def _margins(table: Table, holdout: EnsembleScorer, rows: Sequence[Row]) -> dict[Members, Scores]:
    """Half of the interval of each held-out score, over all of the rows at once; {} where there are
    too few items for that.
    """
    votes = np.stack([holdout.vote(table, row.members) for row in rows])
    alone = [(place, None) for place in range(len(rows))]
    try:
        found = comparisons.differences(table, holdout, votes, alone, comparisons.judged(table))
    except ValueError:  # the gains' remark says why
        return {}
    return {
        row.members: {key: (gain.high - gain.low) / 2 for key, gain in by_key.items()}
        for row, by_key in zip(rows, found, strict=True)
    }


def _everything(table: Table, search: EnsembleScorer) -> tuple[Everything | None, str]:
    """What is embedded of all ensembles, and what that leaves out."""
    if study_config(table.config).kind not in SEARCHES:
        return None, "this kind of study looks at named ensembles alone"
    try:
        every = enumerate_scores(table, search)
    except ValueError as error:
        return None, str(error)
    if every.masks.size <= MOST_ENSEMBLES:
        return every, ""
    fewest = np.argsort(np.bitwise_count(every.masks), kind="stable")[:MOST_ENSEMBLES]
    kept = np.zeros(every.masks.size, dtype=bool)
    kept[fewest] = True
    return every.where(kept), (
        f"the {MOST_ENSEMBLES:,} with the fewest members of {every.masks.size:,} ensembles are on "
        "this page; the command looks at all"
    )


def _columns(every: Everything, scores: Sequence[Score]) -> NDArray[np.float32]:
    """(scores, ensembles)"""
    return np.stack([every.scores[score.key] for score in scores]).astype("<f4")


def _remarks(result: Result) -> list[str]:
    return [
        *(f"{label} was left out: {reason}" for label, reason in result.left_out.items()),
        *(f"{label} is degenerate and may not vote" for label in result.degenerate),
        *result.remarks,
    ]


def _point(
    row: Row, margins: Mapping[Members, Scores], scores: Sequence[Score]
) -> dict[str, object]:
    """What a figure shows of a row."""
    keys = [score.key for score in scores]
    return {
        "kind": row.kind,
        "name": row.name,
        "role": _role(row),
        "search": {key: row.search[key] for key in keys},
        "holdout": {key: row.holdout[key] for key in keys} if row.holdout else {},
        "margin": margins.get(row.members, {}) if row.kind != "baseline" else {},
    }


def _losses_first(by_key: Mapping[str, Gain]) -> list[tuple[str, Gain, str]]:
    """Title, gain, claim: proven losses, what is not proven, proven gains; each from the lowest."""
    rows = [(_title(key), gain, certificate.claim(gain)) for key, gain in by_key.items()]
    return sorted(rows, key=lambda row: (ORDER.index(row[2]), row[1].estimate))


def _reach(shown: Sequence[Shown]) -> float:
    """The largest end of any gain's interval: the scale on which gains are drawn."""
    gains = (
        gain for each in shown for by_key in each.row.gains.values() for gain in by_key.values()
    )
    return max((abs(end) for gain in gains for end in (gain.low, gain.high)), default=1.0) or 1.0


def _command(config: Config, job: str) -> str:
    """The job for the study's ensembles within other limits, as far as the limits do not say."""
    search = job.startswith("+study")
    name = study_config(config).name.partition(VIEW)[0]
    own = [f"study.name={name}"] if search else [f"export.study={name}", "export.out=chosen"]
    return command(job, *given_again(config, search), *own)


def given_again(config: Config, search: bool) -> list[str]:
    """The overrides of a study that its next job takes too; a search that of its ensembles."""
    return [
        override
        for override in config.overrides
        if not override.lstrip("+~").startswith(("study", "export"))
        or (search and override.startswith(KEPT))
    ]


def command(*arguments: str) -> str:
    """As it is typed in a shell."""
    return shlex.join(["python", "-m", "ptsearch", *arguments])


def _packed(content: bytes) -> str:
    """Gzipped, as base64; equal content gives equal text."""
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _json(value: object) -> str:
    """JSON that may stand within a script element; NaN is null."""
    return json.dumps(_finite(value), separators=(",", ":")).replace("<", "\\u003c")


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None, digits: int = 1, sign: str = "-") -> str:
    """For people; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "\u2013"
    return f"{value:{sign},.{digits}f}".replace("-", "\u2212")
