"""A gate's result for people, pipelines and MLflow: three sentences, a table, then files."""

import json
import math
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.console import Console

from ptsearch.config import GateConfig
from ptsearch.evaluation import checkpoints
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.models import loading
from ptsearch.report import damage, rows, terminal, tracking
from ptsearch.report.certificate import PACKAGES
from ptsearch.report.page import command
from ptsearch.search.gate import (
    FAIL,
    INCONCLUSIVE,
    KEPT,
    LOST,
    PASS,
    UNDECIDED,
    Decision,
    Gate,
    decide,
)
from ptsearch.search.scorer import scorers
from ptsearch.search.study import Members
from ptsearch.shared import CsvRow

FORMAT = "ptsearch-gate/1"
EXIT = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}  # 2 is an error of the user's
EXPERIMENT = "gate"  # of MLflow
HEADS = ("score", "samples", "base", "cand.", "diff.", "at worst", "at best", "verdict")


@dataclass(frozen=True)
class Side:
    """What was compared."""

    name: str
    path: str  # "" = the configured model
    variants: dict[str, str]  # member -> id
    bytes: int  # of the weights, tensors that members share once


@dataclass(frozen=True)
class Report:
    """Everything that is said of a gate."""

    gate: Gate
    base: Side
    candidate: Side
    data: dict[str, str]  # benchmark -> digest of its samples
    command: list[str]
    flips: list[CsvRow] = field(default_factory=list)  # `damage.rows`: all, benchmarks, scenarios
    worst: list[CsvRow] = field(default_factory=list)  # `damage.worst`
    notes: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """The verdict, what is kept and lost, how sure that is and what to do next."""
        return [self._verdict(), self._changes(), self._next()]

    def _verdict(self) -> str:
        gate, names = self.gate, f"{self.candidate.name} may replace {self.base.name}"
        share = f"{100 * self.candidate.bytes / self.base.bytes:.0f} % of its bytes"
        return {
            PASS: f"PASS: {names} at {share}: no score is more than {gate.margin:g} points worse.",
            FAIL: f"FAIL: {self.candidate.name} must not replace {self.base.name}: it loses more "
            f"than {gate.margin:g} points in {_keys(gate.of(LOST))}.",
            INCONCLUSIVE: f"INCONCLUSIVE: whether {names} within {gate.margin:g} points is not "
            f"shown by {gate.samples} samples.",
        }[gate.verdict]

    def _changes(self) -> str:
        lost, kept, undecided = map(self.gate.of, (LOST, KEPT, UNDECIDED))
        parts = [f"lost: {', '.join(map(in_words, lost))}"] if lost else []
        parts.append(f"kept: {_keys(kept) or 'nothing for sure'}")
        parts += [f"undecided: {', '.join(map(in_words, undecided))}"] if undecided else []
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."

    def _next(self) -> str:
        """How sure; what would decide."""
        if self.gate.verdict == PASS:
            return "A model that loses more in some score passes at most 5 times in 100."
        if self.gate.verdict == FAIL:
            return "A model that loses no more in any score fails at most 5 times in 100."
        needed = [
            f"{each.samples_needed:,} of {each.key} (of {each.samples:,} here)"
            for each in self.gate.of(UNDECIDED)
            if each.samples_needed
        ]
        near = [each for each in self.gate.of(UNDECIDED) if not each.samples_needed]
        parts = [f"about so many samples would decide: {', '.join(needed)}"] if needed else []
        parts += [f"{_keys(near)} lies too near the margin to be decided"] if near else []
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}."

    def to_dict(self) -> dict[str, object]:
        """As JSON: what is not finite is null."""
        return {
            "format": FORMAT,
            "verdict": self.gate.verdict,
            "exit": EXIT[self.gate.verdict],
            "sentences": self.sentences,
            "margin": self.gate.margin,
            "samples": self.gate.samples,
            "base": asdict(self.base),
            "candidate": asdict(self.candidate),
            "scores": [_finite(asdict(each)) for each in self.gate.decisions],
            "intervals": "one-sided 95 %, studentised bootstrap over items, paired: at_worst by "
            "itself, at_best simultaneous over the scores",
            "flips": [_finite(row) for row in self.flips],
            "data": self.data,
            "notes": self.notes,
            "command": self.command,
            "versions": {name: version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
        }


def report(table: Table, members: Members, chosen: bool) -> Report:
    """The gate's result. `members` are evaluated, in the order in which the first wins a tie;
    `chosen`: a study chose the candidate on its search half, which says nothing of it any more.
    """
    asked, config = table.config.gate, table.config
    assert asked is not None
    part = "holdout" if (asked.samples, chosen) == ("auto", True) else asked.samples
    scorer = scorers(table)["all" if part == "auto" else part]
    order = {
        label: replace(table.entries[label], variant=table.variant(DENSE)) for label in members
    }
    ranked = replace(table, entries=table.entries | order)  # equal ranks: ties go by the order
    folder = Path(asked.candidate).resolve()
    base = Side(table.base.name, asked.base, {DENSE: table.variant(DENSE).id}, _bytes(table, DENSE))
    ids = {label: table.variant(label).id for label in members}
    first = table.variant(members[0])
    known = len(members) == 1 and first.method not in (DENSE, "path")
    name = first.label if known else folder.name
    candidate = Side(name, asked.candidate, ids, _bytes(table, *members))
    notes = [f"{label}: {why}" for label in members if (why := table.entries[label].reason)]
    places = [loading.checkpoint_of(table.folder(label))[0] for label in members]
    if files := sorted({n for p in places for n in checkpoints.differing(table.base.path, p)}):
        notes.append(f"base and candidate differ in {', '.join(files)}: each is asked in its way")
    if part == "holdout":
        notes.append("The held-out half alone: a study chose the candidate on the other one.")
    gate = decide(ranked, scorer, members, asked.margin, asked.perspectives)
    flipped = damage.rows(ranked, scorer, {candidate.name: members})
    notes.insert(0, damage.in_words(flipped[0]))
    return Report(
        gate, base, candidate,
        data={b.name: b.digest for b in table.benchmarks},
        command=["python", "-m", "ptsearch", *config.overrides],
        flips=flipped,
        worst=damage.worst(ranked, scorer, members),
        notes=notes,
    )  # fmt: skip


def _bytes(table: Table, *labels: str) -> int:
    tensors = [each for label in labels for each in table.meta(label).tensors.values()]
    return sum({each.sha256: each.bytes for each in tensors}.values())


def show(screen: Console, report: Report) -> None:
    """The sentences, the table, what to know, what to do."""
    for sentence in report.sentences:
        screen.print(sentence)
    screen.print()
    terminal.show_grid(screen, "", HEADS, [[_cells(each) for each in report.gate.decisions]])
    notes = [
        "Percent and points; at worst is sure by itself, at best for all scores together (95 %).",
        *report.notes,
    ]
    for note in notes:
        screen.print(note, style="dim")
    if steps := _steps(report):
        screen.print("\nNext", style="bold")
        for step, text in steps.items():
            screen.print(f"{step:7} {text}", soft_wrap=True)


def write(report: Report, asked: GateConfig) -> None:
    """The files that were asked for; JSON may go to standard output, which `jobs` writes."""
    for name, template in ((asked.junit, "gate.xml.j2"), (asked.markdown, "gate.md.j2")):
        if name:
            Path(name).write_text(_rendered(report, template), encoding="utf-8")
    if asked.json not in ("", "-"):
        Path(asked.json).write_text(to_json(report), encoding="utf-8")
    if asked.details:
        _write_details(report, Path(asked.details))


def _write_details(report: Report, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows.write_rows(report.flips, folder / "flips.csv")
    rows.write_rows(report.worst, folder / "worst.csv", damage.COLUMNS)


def to_json(report: Report) -> str:
    return json.dumps(report.to_dict(), indent=1) + "\n"


def log(report: Report, url: str, artifacts: Path) -> str:
    """A run of MLflow's experiment `gate`; where it is found."""
    with tracking.legible(url):
        tracker = tracking.open_run(url, artifacts, EXPERIMENT, None)
        with tempfile.TemporaryDirectory() as folder:
            _write_details(report, Path(folder))
            files = {"gate.json": to_json(report), "gate.md": _rendered(report, "gate.md.j2")}
            for name, text in files.items():
                Path(folder, name).write_text(text, encoding="utf-8")
            metrics = {
                f"{each.key.replace('/', '.')}_{name}_points": value
                for each in report.gate.decisions
                for name, value in (("gain", each.difference), ("at_worst", each.at_worst))
                if math.isfinite(value)
            }
            sides = {"base": report.base.name, "candidate": report.candidate.name}
            params = {"verdict": report.gate.verdict, "margin": report.gate.margin, **sides}
            tracking.finish(
                tracker, params, metrics, sorted(Path(folder).iterdir()), report.sentences[0]
            )
    return tracking.link(tracker, "gate.md")


def _rendered(report: Report, template: str) -> str:
    templates = Environment(
        loader=PackageLoader("ptsearch.report"), autoescape=template.endswith(".xml.j2"),
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    values = {"heads": HEADS, "rows": [_cells(each) for each in report.gate.decisions]}
    return templates.get_template(template).render(values, report=report, words=in_words)


def _cells(each: Decision) -> list[str]:
    scores = [_number(each.base), _number(each.candidate)]
    points = [each.difference, each.at_worst, each.at_best]
    return [each.key, str(each.samples), *scores, *(_number(p, "+") for p in points), each.verdict]


def _number(value: float, sign: str = "") -> str:
    return f"{round(value, 1) + 0.0:{sign}.1f}" if math.isfinite(value) else "-"


def in_words(each: Decision) -> str:
    """ethics -1.3 (-3.0 to +0.4), the bounds of the table."""
    if math.isnan(each.candidate):
        return f"{each.key} (no usable answer for one of two groups)"
    ends = f"{_number(each.at_worst, '+')} to {_number(each.at_best, '+')}"
    return f"{each.key} {_number(each.difference, '+')} ({ends})"


def _keys(decisions: Sequence[Decision]) -> str:
    return ", ".join(each.key for each in decisions)


def _finite(values: Mapping[str, object]) -> dict[str, object]:
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }


def _steps(report: Report) -> dict[str, str]:
    """Commands to go on with."""
    again = [each for each in report.command[3:] if not each.startswith("gate.margin=")]
    if report.gate.verdict == INCONCLUSIVE:
        wider = 2 * report.gate.margin
        return {
            "more": "benchmarks=paper, or questions of your own (benchmarks.path=FILE), beside",
            "wider": command(*again, f"gate.margin={wider:g}"),
        }
    if report.gate.verdict == FAIL:
        return {"search": command("+study=pareto", *(o for o in again if "gate" not in o))}
    return {}
