"""Random questions of every kind of scenario, and variants' answers to them."""

import numpy as np

from ptsearch.benchmarks import Scenario
from ptsearch.benchmarks.parsing import REFUSED
from ptsearch.scoring.refusals import Refusals
from ptsearch.scoring.scores import Part, Questions
from ptsearch.shared import AnswerCodes

SCENARIOS = (
    ("mmlu", Scenario("zero", "zero"), 5),
    ("mmlu", Scenario("few", "few"), 4),
    ("adversarial", Scenario("sst2", "sst2"), 2),
    ("adversarial", Scenario("mnli", "mnli"), 3),
    ("adversarial", Scenario("mnli-mm", "mnli"), 3),
    ("fairness", Scenario("zero", "zero", "parity"), 2),
    ("fairness", Scenario("few", "few", "parity"), 2),
    ("ethics", Scenario("zero", "zero"), 2),
    ("ethics", Scenario("evasive", "evasive", "resist"), 2),
    ("ethics", Scenario("unscored", "unscored", scored=False), 2),
    ("ood", Scenario("style", "style"), 2),
    ("ood", Scenario("knowledge", "knowledge"), 4),  # here declining is right, or may be
    ("safety", Scenario("requests", "requests", "decline"), 1),  # declining is the other answer
)


def random_asked(rng: np.random.Generator, samples: int = 30) -> Questions:
    """About `samples` of each scenario, shuffled; some parity rows with a third gold label."""
    parts, columns, start = [], [], 0
    for benchmark, scenario, labels in SCENARIOS:
        n = int(rng.integers(samples // 2, 2 * samples))
        gold = rng.integers(0, labels, n)
        abstain = np.zeros(n, dtype=bool)
        group = np.full(n, -1)
        if scenario.name == "knowledge":
            abstain = rng.random(n) < 0.7
            gold[rng.random(n) < 0.4] = labels
        if scenario.metric == "decline":
            gold = rng.integers(0, 2, n)
        if scenario.metric == "parity":
            group = rng.integers(0, 2, n)
            gold[rng.random(n) < 0.1] = 2
        columns.append((gold, np.full(n, labels), group, abstain))
        parts.append(Part(benchmark, scenario, np.arange(start, start + n)))
        start += n
    gold, n_labels, group, abstain = (
        np.concatenate(column) for column in zip(*columns, strict=True)
    )
    place = rng.permutation(start)
    back = np.argsort(place)
    return Questions(
        gold=gold[back].astype(np.int16),
        n_labels=n_labels[back].astype(np.int16),
        group=group[back].astype(np.int8),
        abstain_ok=abstain[back],
        holdout=np.zeros(start, dtype=bool),
        parts=tuple(part._replace(rows=np.sort(place[part.rows])) for part in parts),
    )


def random_refusals(rng: np.random.Generator, asked: Questions) -> Refusals:
    """Errors, labels and vetoes of one to three members; declining is an answer where it is gold,
    may be right, or by chance.
    """
    offered = (
        asked.abstain_ok | (asked.gold >= asked.n_labels) | (rng.random(asked.gold.size) < 0.5)
    )
    decide = rng.integers(-1, 4, asked.gold.size).astype(np.int16)
    code = np.where(offered, asked.n_labels, REFUSED).astype(np.int16)
    return Refusals(decide, code, asked.n_labels)


def random_codes(rng: np.random.Generator, asked: Questions, n_variants: int) -> AnswerCodes:
    """Answers that are right half of the time, else any label, abstaining, or a negative code."""
    shape = (n_variants, asked.gold.size)
    guess = rng.integers(-3, asked.n_labels + 1, shape)
    return np.where(rng.random(shape) < 0.5, asked.gold, guess).astype(np.int16)
