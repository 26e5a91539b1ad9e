"""MMLU: 57 subjects, four options, 5-shot (scored) and 0-shot, as raw text.

Layout under the root: `mmlu/data/{dev,test}/<subject>_{dev,test}.csv`, no header, rows of question,
four options, letter. Hendrycks et al., https://arxiv.org/abs/2009.03300
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ptsearch.benchmarks import (
    Benchmark,
    BenchmarkDefinition,
    Sample,
    Scenario,
    files,
    hub,
    item_hash,
    pocket,
)
from ptsearch.benchmarks.parsing import REFUSED, Parser, Question, letter

VERSION = 1
LETTERS = ("A", "B", "C", "D")
SHOTS = 5
SUBJECTS = 57
REPOSITORY, COMMIT = "cais/mmlu", "c30699e8356da336a370243923dbaf21066bb9fe"


class Row(NamedTuple):
    question: str
    options: tuple[str, ...]
    gold: int  # index into LETTERS


def load(root: Path) -> Benchmark:
    """Both scenarios, the subjects of the files in order; the mode `choice` compares the letters
    after `Answer:`.
    """
    folder = files.open_folder(root)
    tests = sorted((root / "mmlu/data/test").glob("*_test.csv"))
    if not tests:
        raise FileNotFoundError(f"{root}/mmlu/data/test/<subject>_test.csv: no such file")
    scenarios = {
        name: Scenario(
            name=name, subscore="mmlu", mode="generate", parse="letter", scored=name == "5-shot"
        )
        for name in ("5-shot", "0-shot")
    }
    samples: list[Sample] = []
    for subject in (path.name.removesuffix("_test.csv") for path in tests):
        demos = _rows(folder, "dev", subject)[:SHOTS]
        rows = _rows(folder, "test", subject)
        for name, shots in (("5-shot", demos), ("0-shot", [])):
            samples += _samples(name, subject, shots, rows)
    missing = f"{len(tests)} of {SUBJECTS} subjects: not comparable with published figures"
    notes = () if len(tests) == SUBJECTS else (missing,)
    return Benchmark(
        "mmlu", "paper", VERSION, scenarios, tuple(samples), files.verify(folder), notes
    )


def _rows(folder: files.Folder, split: str, subject: str) -> list[Row]:
    rows = []
    for record in files.read_csv(folder, f"mmlu/data/{split}/{subject}_{split}.csv"):
        cells = record.cells()
        if len(cells) != 2 + len(LETTERS):
            raise ValueError(
                f"{record.where}: expected question, {len(LETTERS)} options and a letter, "
                f"got {len(cells)} cells"
            )
        rows.append(Row(cells[0], tuple(cells[1:-1]), files.one_of(record, cells[-1], LETTERS)))
    if not rows:
        raise ValueError(f"{folder.root}/mmlu/data/{split}/{subject}_{split}.csv:1: no rows")
    return rows


def _samples(
    scenario: str, subject: str, demos: Sequence[Row], rows: Sequence[Row]
) -> Iterator[Sample]:
    # Two spaces after "about", as published.
    head = (
        "The following are multiple choice questions (with answers) about "
        f" {subject.replace('_', ' ')}.\n\n"
    )
    spans = []
    for demo in demos:
        start = len(head)
        head += f"{_question_text(demo)} {LETTERS[demo.gold]}\n\n"
        spans.append((start, len(head)))
    for index, row in enumerate(rows):
        name = f"{scenario}/{subject}/{index}"
        yield Sample(
            id=name, item=item_hash(row.question, *row.options), scenario=scenario,
            prompt=head + _question_text(row),
            question=Question(LETTERS, row.options, gold=row.gold, seed=name), gold=row.gold,
            content=" ".join((row.question, *row.options)), stratum=subject, demos=tuple(spans),
        )  # fmt: skip


def _question_text(row: Row) -> str:
    options = zip(LETTERS, row.options, strict=True)
    lines = [row.question, *(f"{letter}. {text}" for letter, text in options), "Answer:"]
    return "\n".join(lines)


def published_letter(reply: str, question: Question) -> int:
    """The first character but for `</s>`: a reply that begins with a space is a refusal."""
    first = reply.replace("</s>", "")[:1].upper()
    return question.labels.index(first) if first in question.labels else REFUSED


def download(source: hub.Hub, root: Path) -> None:
    """One CSV file per subject and split, from the two Parquet files of all subjects."""
    for split in ("dev", "test"):
        rows: dict[str, list[list[str]]] = {}
        for row in hub.parquet(source, REPOSITORY, f"all/{split}-00000-of-00001.parquet"):
            cells = [row["question"], *row["choices"], LETTERS[row["answer"]]]
            rows.setdefault(row["subject"], []).append(cells)
        for subject, cells_of in rows.items():
            path = hub.new_file(root, f"mmlu/data/{split}/{subject}_{split}.csv")
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(cells_of)


BENCHMARK = BenchmarkDefinition(
    name="mmlu",
    load_pocket=pocket.mmlu,
    load_paper=load,
    download=download,
    revisions={REPOSITORY: COMMIT},
    parsers={"letter": Parser(letter, published_letter)},
    perspective=False,
    rank=0,
)
