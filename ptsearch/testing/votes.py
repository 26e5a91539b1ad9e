"""Laws of a vote rule, checked on seeded random answers to questions of two scenarios."""

import json
from collections.abc import Iterator

import numpy as np

from ptsearch.benchmarks import Benchmark, Sample, Scenario, item_hash
from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, Question
from ptsearch.config import VoteConfig
from ptsearch.scoring.refusals import ERROR, LABEL, Refusals, ballots, outcomes
from ptsearch.scoring.scores import Questions, questions
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.voting import Fitted, VoteInputs, VoteRule, votes

SAMPLES = 60  # of each scenario
LABELS = {"accuracy": ("red", "green", "blue"), "parity": ("no", "yes")}


def check_vote_rule(rule: VoteRule, config: VoteConfig | None = None, seed: int = 0) -> None:
    """AssertionError: the rule breaks a law. `config` holds the rule's own settings."""
    rng, config = np.random.default_rng(seed), config or VoteConfig()
    asked = _questions(rng)
    for members in (1, 2, 3, 5):
        inputs = _inputs(asked, members, rng)
        fitted = rule.fit(inputs, config)
        json.dumps(fitted)  # it is recorded with the study
        voted = rule.vote(inputs, fitted)
        if rule.enumerable:
            majority = votes.majority(inputs.answers, inputs.precision)
            _equal(voted, majority, "an enumerable rule must be the majority")
        _check_codes(inputs, voted)
        _equal(voted, rule.vote(inputs, rule.fit(inputs, config)), "the same inputs vote otherwise")
        for shuffled in _orders(inputs, rng):
            again = rule.vote(shuffled, rule.fit(shuffled, config))
            _equal(voted, again, "the vote depends on the order of members")
        if members == 1:
            usable = inputs.answers[0] >= 0
            _equal(voted[usable], inputs.answers[0][usable], "one member must vote as itself")
        same = np.broadcast_to(asked.gold, inputs.answers.shape).astype(np.int16)
        agreed = _with(inputs, same)
        found = rule.vote(agreed, rule.fit(agreed, config))
        _equal(found, asked.gold, "members that all agree must win")
        nobody = _with(inputs, np.full(inputs.answers.shape, REFUSED, np.int16))
        found = rule.vote(nobody, fitted)
        assert (found < 0).all(), "where no member has a usable answer, the vote is one"
        _check_refusals(rule, inputs, fitted)


def _check_refusals(rule: VoteRule, inputs: VoteInputs, fitted: Fitted) -> None:
    """Whether a refusal is an error, a label or a veto, one member answers as itself, enough vetoes
    refuse, and other refusals that are no label change nothing.
    """
    said, n_labels = inputs.answers, inputs.questions.n_labels
    number, dropped = (said == REFUSED).sum(axis=0), rule.vote(inputs, fitted)
    for decide in (ERROR, LABEL, 1, 2):
        known = Refusals(np.full_like(n_labels, decide), np.full_like(n_labels, REFUSED), n_labels)
        given = _with(inputs, ballots(said, known))
        voted = outcomes(rule.vote(given, fitted), said, known)
        _check_codes(inputs, voted)
        vetoed = (decide > 0) & (number >= decide)
        assert (voted[vetoed] == REFUSED).all(), "enough vetoes must refuse"
        if decide != LABEL:
            _equal(voted[~vetoed], dropped[~vetoed], "a refusal without a veto must be dropped")
        elif rule.enumerable:
            most = 2 * number > len(said)
            assert (voted[most] == REFUSED).all(), "as a label, refusals of most members must win"


def _check_codes(inputs: VoteInputs, voted: AnswerCodes) -> None:
    """One code per sample: an answer that some member gave, or a negative code."""
    samples = inputs.answers.shape[1]
    assert voted.shape == (samples,), f"shape {voted.shape}, expected ({samples},)"
    assert np.issubdtype(voted.dtype, np.integer), f"answer codes are integers, got {voted.dtype}"
    assert (voted >= CONTRADICTORY).all(), f"there is no answer code {voted.min()}"
    assert (voted < inputs.questions.n_labels).all(), "a label that the question does not have"


def _equal(found: AnswerCodes, expected: AnswerCodes, law: str) -> None:
    differ = np.flatnonzero(found != expected)
    assert not differ.size, (
        f"{law}: {found[differ[0]]} and {expected[differ[0]]} at sample {differ[0]}"
    )


def _questions(rng: np.random.Generator) -> Questions:
    """Random questions with three labels, and with two labels and groups."""
    samples = [
        Sample(
            id=f"{metric}-{n}",
            item=item_hash(metric, str(n)),
            scenario=metric,
            prompt="?",
            question=Question(labels),
            gold=int(rng.integers(len(labels))),
            group=n % 2 if metric == "parity" else -1,
        )
        for metric, labels in LABELS.items()
        for n in range(SAMPLES)
    ]
    scenarios = {metric: Scenario(metric, subscore=metric, metric=metric) for metric in LABELS}
    return questions([Benchmark("fairness", "file", 1, scenarios, tuple(samples), {})], "salt")


def _inputs(asked: Questions, members: int, rng: np.random.Generator) -> VoteInputs:
    """Members that are right two times of three and refuse now and then; precisions differ."""
    shape = (members, asked.gold.size)
    said = np.where(rng.random(shape) < 0.67, asked.gold, rng.integers(0, asked.n_labels, shape))
    said[rng.random(shape) < 0.2] = REFUSED
    precision = rng.permutation(members).astype(np.float64)
    return _with(VoteInputs(asked, said.astype(np.int16), precision), said.astype(np.int16))


def _with(inputs: VoteInputs, said: AnswerCodes) -> VoteInputs:
    """The inputs with other answers, and log-probabilities whose best label is the answer."""
    width = int(inputs.questions.n_labels.max())
    labels = np.arange(width)
    preferred = np.where(
        labels == said[..., None], 0.8, 0.2 / (inputs.questions.n_labels[:, None] - 1)
    )
    logprobs: Floats = np.log(preferred)
    logprobs[:, labels[None] >= inputs.questions.n_labels[:, None]] = np.nan
    logprobs[said < 0] = np.nan
    return inputs._replace(answers=said, logprobs=logprobs)


def _orders(inputs: VoteInputs, rng: np.random.Generator) -> Iterator[VoteInputs]:
    assert inputs.logprobs is not None
    for _ in range(3):
        order = rng.permutation(len(inputs.answers))
        yield VoteInputs(
            inputs.questions, inputs.answers[order], inputs.precision[order], inputs.logprobs[order]
        )
