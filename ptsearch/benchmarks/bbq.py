"""Stereotypes: BBQ, questions about two groups in contexts that do and do not say the answer.

Each question has two answers and an unknown one, which is right where the context is ambiguous and
is the abstain label here. `Sample.group` is the answer that follows the stereotype. Layout under
the root: `bbq/data/<Category>.jsonl` (https://github.com/nyu-mll/BBQ), each a scenario.
BBQ, https://arxiv.org/abs/2110.08193.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from ptsearch.benchmarks import Benchmark, BenchmarkDefinition, Sample, Scenario, files, item_hash
from ptsearch.benchmarks.parsing import UNUSABLE, Parser, Question, bare, declined, refuses

VERSION = 1
FOLDER = "bbq/data"
LETTERS = ("a", "b", "c")
CONTEXTS, POLARITIES = ("disambig", "ambig"), ("nonneg", "neg")
_LETTER = re.compile(r"\W*([abc])(?:\W|$)")


def load(root: Path) -> Benchmark:
    folder = files.open_folder(root)
    names = sorted(path.name for path in (root / FOLDER).glob("*.jsonl"))
    if not names:
        raise FileNotFoundError(f"{root / FOLDER}: no file such as Age.jsonl")
    scenarios, samples = dict[str, Scenario](), list[Sample]()
    for name in names:
        scenario = name.removesuffix(".jsonl").lower()
        scenarios[scenario] = Scenario(scenario, scenario, "decline", parse="bbq", lead="")
        samples += [
            _sample(record, scenario) for record in files.read_jsonl(folder, f"{FOLDER}/{name}")
        ]
    return Benchmark("bbq", "paper", VERSION, scenarios, tuple(samples), files.verify(folder))


def _sample(record: files.Record, scenario: str) -> Sample:
    context, text = files.field(record, "context"), files.field(record, "question")
    answers = [files.field(record, f"ans{i}") for i in range(3)]
    groups = [_groups(record, i) for i in range(3)]
    unknown = [i for i in range(3) if "unknown" in groups[i]]
    right = files.one_of(record, record.items().get("label"), (0, 1, 2))
    if len(unknown) != 1:
        raise ValueError(f"{record.where}: expected one unknown answer, got {len(unknown)}")
    order = [i for i in range(3) if i != unknown[0]] + unknown
    ambiguous = files.one_of(record, record.items().get("context_condition"), CONTEXTS)
    if ambiguous != (right == unknown[0]):
        raise ValueError(
            f"{record.where}: expected unknown as the label of ambiguous contexts alone"
        )
    letters = [LETTERS[i] for i in order]
    options = " ".join(
        f"({letter}) {answer}" for letter, answer in zip(LETTERS, answers, strict=True)
    )
    template = files.field(record, "question_index")  # its wordings differ in names and order
    id = f"{scenario}/{record.items().get('example_id')}"
    return Sample(
        id=id, item=item_hash("bbq", scenario, template), scenario=scenario,
        prompt=f"{context} {text}\n{options}\nAnswer: (",
        question=Question(tuple(letters[:2]), tuple(answers[i] for i in order), (letters[2],)),
        gold=order.index(right), group=_biased(record, [groups[i] for i in order[:2]]),
        abstain_ok=bool(ambiguous), stratum=template,
    )  # fmt: skip


def _groups(record: files.Record, answer: int) -> set[str]:
    """What an answer is about, in lower case."""
    info = record.items().get("answer_info")
    found = info.get(f"ans{answer}") if isinstance(info, Mapping) else None
    if not isinstance(found, list):
        raise ValueError(
            f"{record.where}: expected a list as answer_info.ans{answer}, got {found!r}"
        )
    return {str(group).lower() for group in found}


def _biased(record: files.Record, groups: list[set[str]]) -> int:
    """The answer that follows the stereotype: of a negative question the one about its group, of
    the opposite question the other one; -1 where the groups do not tell.
    """
    metadata = record.items().get("additional_metadata")
    listed = metadata.get("stereotyped_groups") if isinstance(metadata, Mapping) else None
    if not isinstance(listed, list):
        raise ValueError(f"{record.where}: expected a list as stereotyped_groups, got {listed!r}")
    stereotyped = {str(group).lower() for group in listed}
    negative = files.one_of(record, record.items().get("question_polarity"), POLARITIES)
    hits = [i for i, group in enumerate(groups) if bool(group & stereotyped) == bool(negative)]
    return hits[0] if len(hits) == 1 else -1


def read(reply: str, question: Question) -> int:
    """An answer's text, or its letter at the start; else a refusal is the unknown answer."""
    texts, letters = (
        [bare(text) for text in question.options],
        (*question.labels, *question.abstain),
    )
    if bare(reply) in texts:
        return texts.index(bare(reply))
    if (found := _LETTER.match(reply.lower())) and found[1] in letters:
        return letters.index(found[1])
    return declined(question) if refuses(reply) else UNUSABLE


BENCHMARK = BenchmarkDefinition(
    name="bbq", load_paper=load, parsers={"bbq": Parser(read)}, perspective=False, on=False, rank=7
)
