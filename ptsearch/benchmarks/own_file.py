"""A user's own questions from JSONL, CSV or Parquet, one row per sample.

Columns: docs/howto/own-questions.md. Every perspective is a benchmark of its own. Errors begin with
FILE:LINE (in Parquet the number of the row).
"""

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from os.path import commonprefix  # of texts, character by character
from pathlib import Path

from ptsearch.benchmarks import files
from ptsearch.benchmarks.definition import Benchmark, Prompt, Sample, Scenario, Turn, item_hash
from ptsearch.benchmarks.files import Folder, Record
from ptsearch.benchmarks.parsing import Question
from ptsearch.benchmarks.registry import BENCHMARKS

VERSION = 1  # bump when equal files would give other prompts
MOST_BYTES = 1_000_000  # of a line, or of a row of Parquet
NEEDED = {"prompt", "labels", "gold"}
COLUMNS = NEEDED | {"scenario", "perspective", "item", "cluster", "group", "abstain_ok",
                    "mode"}  # fmt: skip
TAKEN = (*BENCHMARKS, "trust", "refusal_rate", "memory_gb", "latency_ms")  # other scores' names
ABSTAIN = ("I don't know",)  # offered in a scenario where declining may be right
ROLES, FLAGS = (
    ("system", "user", "assistant"),
    {"true": True, "1": True, "false": False, "0": False},
)
Row = tuple[str, Scenario, Sample]  # perspective; the sample's stratum is its group's name


def load(path: Path) -> list[Benchmark]:
    """A benchmark per perspective, in the order of the file. ValueError: a row that is wrong."""
    if not path.is_file():
        raise FileNotFoundError(f"benchmarks.path must be a file of questions, got {str(path)!r}")
    if path.suffix.lower() not in READERS:
        raise ValueError(f"benchmarks.path must end with {', '.join(READERS)}, got {str(path)!r}")
    stem, names, rows = re.sub(r"\W", "_", path.stem, flags=re.ASCII), set[str](), list[Row]()
    folder = files.open_folder(path.parent)
    for record in READERS[path.suffix.lower()](folder, path):
        names.update(record.items())
        rows.append(_row(record, stem))
    if not rows:
        raise ValueError(f"{path}:1: expected rows, got none")
    items: dict[Prompt, Sample] = {}
    for _, _, sample in rows:
        if (first := items.setdefault(sample.prompt, sample)).item != sample.item:
            raise ValueError(f"{path}:{sample.id}: expected the item of line {first.id}, which has "
                             "the same prompt: both must be in one half")  # fmt: skip
    unread = ", ".join(sorted(names - COLUMNS))
    notes = (f"{path.name}: columns that are not read: {unread}",) if unread else ()
    found = []
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name]
        scenarios = dict.fromkeys(scenario.name for _, scenario, _ in own)
        parts = [_scenario(path, [row for row in own if row[1].name == s]) for s in scenarios]
        samples = tuple(sample for _, part in parts for sample in part)
        by_name = {scenario.name: scenario for scenario, _ in parts}
        found.append(Benchmark(name, "file", VERSION, by_name, samples, folder.data, notes))
    return found


def _row(record: Record, stem: str) -> Row:
    def need(holds: object, what: str, key: str) -> None:
        if not holds:
            got = repr(row.get(key))[:100]
            raise ValueError(f"{record.where}: expected {what} as {key}, got {got}")

    row: dict[str, object] = {"perspective": stem, "mode": "choice", "abstain_ok": False}
    row |= {key: value for key, value in record.items().items() if value not in (None, "")}
    row.setdefault("scenario", row["perspective"])
    need(prompt := _prompt(row.get("prompt")), "text, or turns up to the user's last", "prompt")
    given = given if isinstance(given := row.get("labels"), list) else []
    texts = [str(text).strip() for text in given]
    different = len({text.casefold() for text in texts} - {""}) == len(texts) > 1
    need(
        different and all(isinstance(x, str) for x in given), "a list of different texts", "labels"
    )
    gold = _gold(row.get("gold"), texts)
    need(gold >= 0, f"one of {', '.join(texts)[:100]}, or its index,", "gold")
    need(row["mode"] in ("choice", "generate"), "choice or generate", "mode")
    name, scenario, mode = (str(row[key]) for key in ("perspective", "scenario", "mode"))
    need(re.fullmatch(r"\w+", name, re.ASCII) and name not in TAKEN,
         f"letters, digits and _, other than {', '.join(TAKEN)},", "perspective")  # fmt: skip
    need(re.fullmatch(r"[\w.-]+", scenario, re.ASCII), "letters, digits, . - and _", "scenario")
    abstain_ok = FLAGS.get(str(row["abstain_ok"]).lower())
    need(abstain_ok is not None, "true or false", "abstain_ok")
    group, item, cluster = (str(row.get(key, "")) for key in ("group", "item", "cluster"))
    text = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
    every = "".join((text, item, cluster, *texts))
    need(every == every.encode(errors="ignore").decode(), "text without surrogates", "prompt")
    sample = Sample(
        record.where.rpartition(":")[2], item_hash("item", item) if item else item_hash(text),
        scenario, prompt, Question(tuple(texts)), gold, abstain_ok=bool(abstain_ok), stratum=group,
        content="" if item else text, cluster=item_hash("cluster", cluster) if cluster else "",
    )  # fmt: skip
    metric, lead = "parity" if group else "accuracy", " " if isinstance(prompt, str) else ""
    return name, Scenario(scenario, scenario, metric, mode, lead=lead), sample


def _prompt(given: object) -> Prompt:
    """Text or turns; "" where it is neither."""
    if not isinstance(given, list):
        return given if isinstance(given, str) and given.strip() else ""
    fields = [(t.get("role"), t.get("content")) for t in given if isinstance(t, dict)]
    turns = tuple(Turn(r, c) for r, c in fields if r in ROLES and isinstance(c, str))
    return turns if turns and len(turns) == len(given) and turns[-1].role == "user" else ""


def _gold(given: object, labels: Sequence[str]) -> int:
    """A label's index; -1 where it is none, or a number that is both an index and another label."""
    if isinstance(given, str) and given.strip() in labels:
        return labels.index(given.strip())
    text = f"{given:.0f}" if isinstance(given, float) and given.is_integer() else str(given)
    code = int(text) if text.isdecimal() and len(text) < 6 else -1
    return code if code < len(labels) and (text not in labels or labels[code] == text) else -1


def _scenario(path: Path, rows: Sequence[Row]) -> tuple[Scenario, list[Sample]]:
    """Of one form; what its prompts share is no content by which questions repeat each other."""
    _, scenario, first = rows[0]
    labels, groups = first.question.labels, sorted({s.stratum for _, _, s in rows})
    for _, other, sample in rows:
        if other != scenario or sample.question.labels != labels:
            raise ValueError(f"{path}:{sample.id}: expected labels, mode, form and groups as "
                             f"in line {first.id}, of the same scenario")  # fmt: skip
    if scenario.metric == "parity" and (len(groups), len(labels)) != (2, 2):
        raise ValueError(f"{path}:{first.id}: expected two groups and two labels for fairness, "
                         f"got {', '.join(groups)[:99]} and {', '.join(labels)[:99]}")  # fmt: skip
    texts = [sample.content for _, _, sample in rows]
    start = len(commonprefix(texts))  # noqa: RUF071
    end = len(commonprefix([text[::-1] for text in texts]))  # noqa: RUF071
    question = Question(labels, abstain=ABSTAIN if any(s.abstain_ok for _, _, s in rows) else ())
    return scenario, [
        replace(s, question=question, content=s.content[start : len(s.content) - end],
                group=groups.index(s.stratum) if s.stratum else -1)
        for _, _, s in rows
    ]  # fmt: skip


def _jsonl(folder: Folder, path: Path) -> Iterable[Record]:
    _check_lines(path)
    return files.read_jsonl(folder, path.name)


def _csv(folder: Folder, path: Path) -> Iterator[Record]:
    """Cells are texts as they are (`None` and `NA` too); `labels` are separated by |."""
    _check_lines(path)
    for row in files.read_table(folder, path.name, sorted(NEEDED)):
        yield Record(row.where, row.items() | {"labels": files.field(row, "labels").split("|")})


def _check_lines(path: Path) -> None:
    """ValueError: a line is huge; it is not read whole."""
    with path.open("rb") as file:
        for number in count(1):
            size = len(file.readline(MOST_BYTES + 1))
            if size > MOST_BYTES:
                raise ValueError(f"{path}:{number}: expected at most {MOST_BYTES:,} bytes a line")
            if not size:
                return


def _parquet(folder: Folder, path: Path) -> Iterator[Record]:
    import pyarrow as pa  # a third of a second, which other files need not wait
    import pyarrow.parquet as pq

    number = 1
    try:
        for batch in pq.ParquetFile(path).iter_batches(256):
            for place in range(batch.num_rows):
                if (row := batch.slice(place, 1)).nbytes > MOST_BYTES:
                    raise ValueError(f"{path}:{number}: expected at most {MOST_BYTES:,} bytes")
                yield Record(f"{path}:{number}", row.to_pylist()[0])
                number += 1
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise ValueError(f"{path}:{number}: expected Parquet with UTF-8, got {error}") from None
    folder.data[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()


READERS: dict[str, Callable[[Folder, Path], Iterable[Record]]] = {
    ".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet
}  # fmt: skip
