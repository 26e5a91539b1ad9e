"""What is asked and what would be right: benchmark > scenario > sample of an item.

A `Benchmark` holds the samples of one of `mmlu`, `adversarial`, `fairness`, `ethics`, `ood`. The
same five come from different sources (`pocket`, `paper`) through the same types.
"""

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from ptsearch.benchmarks.parsing import Question

NAMES = ("mmlu", "adversarial", "fairness", "ethics", "ood")


class Turn(NamedTuple):
    """One chat message."""

    role: str  # system | user | assistant
    content: str


Prompt = str | tuple[Turn, ...]  # plain text as it is, or turns for the tokenizer's chat template


@dataclass(frozen=True)
class Scenario:
    """Samples that are asked, read and scored in one way."""

    name: str  # unique within the benchmark, as the data names it: "style.shake_w"
    subscore: str  # scenarios of one subscore are averaged first, then the subscores
    metric: str = "accuracy"  # accuracy | parity (DPD, EOD by group) | resist (100 - FPR)
    mode: str = "choice"  # choice (label log-probabilities) | generate (greedy)
    parse: str = "words"  # how a reply is read: a key of each rule set's table
    lead: str = " "  # text between the prompt and a label in choice mode
    max_new_tokens: int = 16  # in generate mode
    stop: str = ""  # generate mode: a reply ends before this text ("" = at end-of-sequence only)
    calibrate: str = "none"  # choice mode: none | dm | cf
    calibration: dict[str, tuple[Prompt, ...]] = field(default_factory=dict)
    # "dm": the demonstrations asked again in context; "cf": neutral inputs. Either gives the mean
    # label log-probabilities that are subtracted; all samples then share one label space.
    scored: bool = True  # False: reported, but not part of the perspective's score


@dataclass(frozen=True)
class Sample:
    """One prompt made of an item."""

    id: str  # unique within the benchmark
    item: str  # `item_hash` of the content before perturbation or prompt
    scenario: str
    prompt: Prompt
    question: Question
    gold: int  # index into question.labels; len(labels) = abstaining is what is right
    group: int = -1  # sensitive attribute (sex: Male = 1), -1 none
    abstain_ok: bool = False  # declining counts as right
    stratum: str = ""  # a subject or the like: a limit is spread evenly over strata
    demos: tuple[tuple[int, int], ...] = ()  # where in the prompt the demonstrations stand
    # (from, to): characters of plain text, else turns; a prompt that is too long loses whole ones


@dataclass(frozen=True)
class Benchmark:
    """All samples of one benchmark from one source."""

    name: str  # one of NAMES
    source: str  # pocket | paper | file
    version: int  # bump when equal files would give other prompts
    scenarios: dict[str, Scenario]
    samples: tuple[Sample, ...]
    data: dict[str, str]  # file, relative to its root -> SHA-256
    notes: tuple[str, ...] = ()  # what is missing or stands in for something, for the user
    dropped: int = 0  # demonstrations left out of prompts beyond a model's context


def item_hash(*content: str) -> str:
    """SHA-256 of the normalised content: NFKC, case folded, white space collapsed."""
    normal = [
        re.sub(r"\s+", " ", unicodedata.normalize("NFKC", part)).strip().casefold()
        for part in content
    ]
    return hashlib.sha256("\x1f".join(normal).encode()).hexdigest()


def digest(benchmark: Benchmark) -> str:
    """SHA-256 of all that decides a prediction: samples, prompts, modes, calibration, data."""
    scenarios = {name: asdict(scenario) for name, scenario in benchmark.scenarios.items()}
    samples = [
        (s.id, s.scenario, s.prompt, s.question.labels, s.question.abstain)
        for s in benchmark.samples
    ]
    what = [benchmark.source, benchmark.version, scenarios, samples, benchmark.data]
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
