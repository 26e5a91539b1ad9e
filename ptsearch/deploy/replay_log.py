"""A sample of the members' answers in a study, which a server must reproduce before it starts."""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptsearch import store
from ptsearch.benchmarks import Benchmark, Sample
from ptsearch.benchmarks.parsing import Question
from ptsearch.deploy import query
from ptsearch.deploy.query import MemberAnswer, Query
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import Table

SEED = 0
RECORDED = 400  # samples of a study
KEPT = 64  # of them, beside an export
MARGIN = 0.25  # nats between a member's two best labels: less may tip with the order of summation

Row = dict[str, Any]


def record(table: Table) -> str:
    """Write the pool's answers to samples of all benchmarks and modes; returns the file's name.

    Samples that a judge read, or whose prompts were cut, are left out.
    """
    labels = [label for label in table.variants if label not in table.degenerate()]
    drawn = list(_draw(table, labels))
    said = {
        (label, benchmark.name): predictions.read(table.outputs(label)[benchmark.name]).to_pylist()
        for label in labels
        for benchmark in table.benchmarks
    }
    rows = []
    for benchmark, index in drawn:
        sample = benchmark.samples[index]
        raw = {label: said[label, benchmark.name][index] for label in labels}
        keys = ("reply", "logprobs", "offsets")
        rows.append(
            {
                "sample": f"{benchmark.name}/{sample.id}",
                "group": _group(benchmark, sample),
                "query": query.to_fields(_query(table, benchmark, sample)),
                "said": {m: {k: each[k] for k in keys if each[k]} for m, each in raw.items()},
            }
        )
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path = path_of(Path(table.config.cache_dir), hashlib.sha256(text.encode()).hexdigest())
    if not path.exists():
        store.write_text(path, text)
    return path.stem


def path_of(cache: Path, name: str) -> Path:
    return cache / "verify" / f"{name}.jsonl"


def lines(recorded: Path, order: Sequence[str]) -> list[Row]:
    """Lines of verify.jsonl for an ensemble: each member's answer, and the vote.

    `order` is the vote's total order. Those whose answers are clear come first.
    """
    groups: dict[str, list[tuple[bool, Row]]] = {}
    for text in recorded.read_text(encoding="utf-8").splitlines():
        row = json.loads(text)
        line, margin = _line(row, order)
        groups.setdefault(row["group"], []).append((margin < MARGIN, line))
    each = max(1, KEPT // max(1, len(groups)))
    return [
        line
        for group in groups.values()
        for _, line in sorted(group, key=lambda pair: pair[0])[:each]
    ]


def _line(row: Mapping[str, Any], order: Sequence[str]) -> tuple[Row, float]:
    """The line, and the least margin of its members in nats; NaN where they replied."""
    said = {member: row["said"][member] for member in order}
    offsets = {member: raw["offsets"] for member, raw in said.items() if raw.get("offsets")}
    asked = replace(query.from_fields(row["query"]), offsets=offsets)
    margins, codes = [], {}
    for member, raw in said.items():
        one = MemberAnswer(tuple(raw.get("logprobs", [])), raw.get("reply", ""))
        codes[member] = query.code(asked, member, one)
        margins.append(query.sureness(asked, member, one))
    line = {
        "sample": row["sample"],
        "query": query.to_fields(asked),
        "members": {member: query.name(asked, code) for member, code in codes.items()},
        "logprobs": {member: raw["logprobs"] for member, raw in said.items() if "logprobs" in raw},
        "vote": query.name(asked, query.vote(asked, list(codes.values()))),
    }
    return line, min(margins)


def _draw(table: Table, labels: Sequence[str]) -> Iterator[tuple[Benchmark, int]]:
    """Benchmarks and positions in them, in a random order, the groups taking turns."""
    judged = [table.entries[label].judged for label in labels]
    changes = [table.changes(label) for label in labels]
    groups: dict[str, list[tuple[Benchmark, int]]] = {}
    start = 0
    for benchmark in table.benchmarks:
        cut = any(each[benchmark.name].demonstrations for each in changes)
        for index, sample in enumerate(benchmark.samples):
            read = any(each is not None and each[start + index] for each in judged)
            one_label = len(sample.question.labels) + len(sample.question.abstain[:1]) < 2
            if not (read or one_label or (cut and sample.demos)):
                groups.setdefault(_group(benchmark, sample), []).append((benchmark, index))
        start += len(benchmark.samples)
    rng = random.Random(SEED)
    for places in groups.values():
        yield from rng.sample(places, min(len(places), max(1, RECORDED // len(groups))))


def _group(benchmark: Benchmark, sample: Sample) -> str:
    return f"{benchmark.name} {benchmark.scenarios[sample.scenario].mode}"


def _query(table: Table, benchmark: Benchmark, sample: Sample) -> Query:
    scenario, asked = benchmark.scenarios[sample.scenario], sample.question
    prompt = sample.prompt
    return Query(
        prompt=prompt if isinstance(prompt, str) else [turn._asdict() for turn in prompt],
        question=Question(*asked),
        lead=scenario.lead,
        max_new_tokens=scenario.max_new_tokens if scenario.mode == "generate" else 0,
        stop=scenario.stop,
        parse=scenario.parse,
        rules=table.config.benchmarks.rules,
        refusal=scenario.refusal,
        veto=table.config.vote.veto,
    )
