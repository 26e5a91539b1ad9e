"""The types of benchmarks: benchmark > scenario > sample of an item, and the record of one.

A file that adds a benchmark ends with `BENCHMARK = BenchmarkDefinition(...)`, which brings its
loaders, the parsers of its replies and what its samples are downloaded from.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ptsearch.benchmarks.parsing import Parser, Question

if TYPE_CHECKING:
    from ptsearch.benchmarks.hub import Hub


class Turn(NamedTuple):
    """One chat message."""

    role: str  # system | user | assistant
    content: str


Prompt = str | tuple[Turn, ...]  # plain text as it is, or turns for the tokenizer's chat template


@dataclass(frozen=True)
class Scenario:
    """Samples with one prompt form, one parser and one metric."""

    name: str  # unique within the benchmark, as the data names it: "style.shake_w"
    subscore: str  # scenarios of one subscore are averaged first, then the subscores
    metric: str = "accuracy"  # accuracy | parity | resist | decline (see `ct_dt.measure`)
    mode: str = "choice"  # choice (label log-probabilities) | generate (greedy)
    parse: str = "words"  # the parser of its replies, a key of `PARSERS`
    lead: str = " "  # text between the prompt and a label in choice mode
    max_new_tokens: int = 16  # in generate mode
    stop: str = ""  # generate mode: a reply ends before this text ("" = at end-of-sequence only)
    calibrate: str = "none"  # choice mode: none | dm | cf
    calibration: dict[str, tuple[Prompt, ...]] = field(default_factory=dict)
    # "dm": the demonstrations, each as a prompt in context; "cf": neutral inputs. The mean label
    # log-probabilities of these are subtracted; all samples then share one label space.
    scored: bool = True  # False: reported, but not part of the perspective's score
    free: bool = False  # replies are no labels: never `choice`, and a judge reads every one
    refusal: str = ""  # in a vote: error (dropped) | label | veto; "" = a label where offered


@dataclass(frozen=True)
class Sample:
    """One prompt made of an item."""

    id: str  # unique within the benchmark
    item: str  # `item_hash` of the content before perturbation or prompt
    scenario: str
    prompt: Prompt
    question: Question
    gold: int  # index into question.labels; len(labels) = abstaining is correct
    group: int = -1  # sensitive attribute (sex: Male = 1), -1 none
    abstain_ok: bool = False  # declining counts as correct
    stratum: str = ""  # a subject or the like: a limit is spread evenly over strata
    content: str = ""  # what `item` hashes, to find repeats in other words ("" = do not look)
    demos: tuple[tuple[int, int], ...] = ()  # where in the prompt the demonstrations are
    # (from, to): characters of plain text, else turns; a prompt that is too long loses whole ones
    cluster: str = ""  # what intervals resample as one; "" = the item

    @property
    def resampled(self) -> str:
        return self.cluster or self.item


@dataclass(frozen=True)
class Benchmark:
    """All samples of one benchmark from one source."""

    name: str  # that of its definition
    source: str  # pocket | paper | hub
    version: int  # bump when equal files would give other prompts
    scenarios: dict[str, Scenario]
    samples: tuple[Sample, ...]
    data: dict[str, str]  # file, relative to its root -> SHA-256
    notes: tuple[str, ...] = ()  # missing or replaced data, for the user
    dropped: int = 0  # demonstrations left out of prompts beyond a model's context
    moved: int = 0  # samples in the half of a question that they repeat, not in their own

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides a prediction: samples, prompts, modes, calibration, data."""
        scenarios = {name: asdict(scenario) for name, scenario in self.scenarios.items()}
        for scenario in scenarios.values():
            del scenario["refusal"], scenario["free"]  # of votes and readers, not of what is said
        samples = [
            (s.id, s.scenario, s.prompt, s.question.labels, s.question.abstain)
            for s in self.samples
        ]
        content = [self.source, self.version, scenarios, samples, self.data]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class BenchmarkDefinition:
    """One benchmark: where its samples come from and how its replies are parsed.

    `download` writes the published files below a folder, laid out as `load_paper` reads them, from
    repositories at `revisions`.
    """

    name: str
    load_pocket: Callable[[], Benchmark] | None = None  # None: not in this source
    load_paper: Callable[[Path], Benchmark] | None = None  # folder `benchmarks.root` -> samples
    download: "Callable[[Hub, Path], None] | None" = None
    revisions: Mapping[str, str] = field(default_factory=dict)  # repository -> commit
    parsers: Mapping[str, Parser] = field(default_factory=dict)  # by `Scenario.parse`
    perspective: bool = True  # part of trust
    on: bool = True  # asked unless `benchmarks.also` must name it
    weight: float = 1.0  # default of trust.weights
    rank: int = 100  # place in tables and tables' samples; equal ranks are ordered by name


def item_hash(*content: str) -> str:
    """SHA-256 of the normalised content: NFKC, case folded, white space collapsed."""
    normal = [
        re.sub(r"\s+", " ", unicodedata.normalize("NFKC", part)).strip().casefold()
        for part in content
    ]
    return hashlib.sha256("\x1f".join(normal).encode()).hexdigest()
