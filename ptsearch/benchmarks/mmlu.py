"""MMLU: 57 subjects, four options, 5-shot (scored) and 0-shot, as raw text.

Layout under the root: `mmlu/data/{dev,test}/<subject>_{dev,test}.csv`, no header, rows of question,
four options, letter. Hendrycks et al., https://arxiv.org/abs/2009.03300
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ptsearch.benchmarks import Benchmark, Sample, Scenario, files, item_hash
from ptsearch.benchmarks.parsing import Question

VERSION = 1
LETTERS = ("A", "B", "C", "D")
SHOTS = 5
SUBJECTS = (
    "abstract_algebra",
    "anatomy",
    "astronomy",
    "business_ethics",
    "clinical_knowledge",
    "college_biology",
    "college_chemistry",
    "college_computer_science",
    "college_mathematics",
    "college_medicine",
    "college_physics",
    "computer_security",
    "conceptual_physics",
    "econometrics",
    "electrical_engineering",
    "elementary_mathematics",
    "formal_logic",
    "global_facts",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_computer_science",
    "high_school_european_history",
    "high_school_geography",
    "high_school_government_and_politics",
    "high_school_macroeconomics",
    "high_school_mathematics",
    "high_school_microeconomics",
    "high_school_physics",
    "high_school_psychology",
    "high_school_statistics",
    "high_school_us_history",
    "high_school_world_history",
    "human_aging",
    "human_sexuality",
    "international_law",
    "jurisprudence",
    "logical_fallacies",
    "machine_learning",
    "management",
    "marketing",
    "medical_genetics",
    "miscellaneous",
    "moral_disputes",
    "moral_scenarios",
    "nutrition",
    "philosophy",
    "prehistory",
    "professional_accounting",
    "professional_law",
    "professional_medicine",
    "professional_psychology",
    "public_relations",
    "security_studies",
    "sociology",
    "us_foreign_policy",
    "virology",
    "world_religions",
)


class Row(NamedTuple):
    question: str
    options: tuple[str, ...]
    gold: int  # index into LETTERS


def load(root: Path, subjects: Sequence[str] = SUBJECTS) -> Benchmark:
    """Both scenarios, subjects in order; the mode `choice` compares the letters after `Answer:`."""
    folder = files.open_folder(root)
    scenarios = {
        name: Scenario(
            name=name, subscore="mmlu", mode="generate", parse="letter", scored=name == "5-shot"
        )
        for name in ("5-shot", "0-shot")
    }
    samples: list[Sample] = []
    for subject in subjects:
        demos = _rows(folder, "dev", subject)[:SHOTS]
        rows = _rows(folder, "test", subject)
        for name, shots in (("5-shot", demos), ("0-shot", [])):
            samples += _samples(name, subject, shots, rows)
    return Benchmark("mmlu", "paper", VERSION, scenarios, tuple(samples), files.verify(folder))


def _rows(folder: files.Folder, split: str, subject: str) -> list[Row]:
    rows = []
    for record in files.read_csv(folder, f"mmlu/data/{split}/{subject}_{split}.csv"):
        cells = record.value
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
        head += f"{_asked(demo)} {LETTERS[demo.gold]}\n\n"
        spans.append((start, len(head)))
    for index, row in enumerate(rows):
        name = f"{scenario}/{subject}/{index}"
        yield Sample(
            id=name,
            item=item_hash(row.question, *row.options),
            scenario=scenario,
            prompt=head + _asked(row),
            question=Question(LETTERS, row.options, gold=row.gold, seed=name),
            gold=row.gold,
            stratum=subject,
            demos=tuple(spans),
        )


def _asked(row: Row) -> str:
    options = zip(LETTERS, row.options, strict=True)
    lines = [row.question, *(f"{letter}. {text}" for letter, text in options), "Answer:"]
    return "\n".join(lines)
