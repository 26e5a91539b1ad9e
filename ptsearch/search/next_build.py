"""Which variant to build next: the one whose imagined answers raise the hypervolume most a second.

How often two variants agree is learnt from the pairs evaluated so far, by their bits, method and
seed. An unbuilt variant is imagined to copy the one it should agree with most, and elsewhere to
say what others said. Its ensembles with the evaluated ones are enumerated; the mean over several
draws of the hypervolume they add, divided by the seconds that building and evaluating should take,
is what the variant promises.
"""

from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring.cost import Cost, VariantCost
from ptsearch.search import enumeration, pareto
from ptsearch.search.objectives import chosen_objectives, losses, with_objectives
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import study_config
from ptsearch.shared import AnswerCodes, Floats
from ptsearch.variant import Variant

DRAWS = 6  # imagined variants for each unbuilt one
LOSSLESS = 9  # bits beyond which nothing is lost any more
PRIOR = 0.1  # pairs that the expectation without data weighs
REFERENCE = 1.1  # of the hypervolume, in units of the range of what is imagined
AHEAD = 5000  # ensembles imagined with one variant at most


class Known(NamedTuple):
    """What is evaluated: the dense model first, which is no member, then members."""

    variants: list[Variant]
    codes: AnswerCodes  # (variants, samples of the search half)
    costs: list[VariantCost]
    seconds: list[float]  # of building and evaluating each


def build_some(table: Table, scorer: EnsembleScorer, number: int) -> list[str]:
    """Build and evaluate `number` variants, one proposal after the other; leave the others out.

    Returns the labels in their order.
    """
    if table.config.pool.build != "named":
        raise ValueError(f"study.max_builds={number} needs pool.build=named: else all are built")
    table.ensure([DENSE])
    rng = np.random.default_rng(study_config(table.config).seed)
    built: list[str] = []
    while len(built) < min(number, len(table.variants)):
        left = {name: v for name, v in table.variants.items() if name not in built}
        built.append(propose(scorer, known(table, scorer, built), left, rng))
        table.report("variants built one by one", len(built), number)
        table.ensure(built[-1:])
    for label in table.variants:
        if label not in built:
            table.leave_out(label, f"not among the study.max_builds={number} built")
    return built


def known(table: Table, scorer: EnsembleScorer, labels: Sequence[str]) -> Known:
    """The dense model and those of `labels` that may vote."""
    sound = [DENSE, *(label for label in labels if label not in table.degenerate())]
    entries = [table.entries[label] for label in sound]
    return Known(
        [entry.variant for entry in entries],
        np.stack([entry.codes[scorer.mask] for entry in entries]),
        [entry.cost for entry in entries],
        [table.seconds(label) for label in sound],
    )


def propose(
    scorer: EnsembleScorer, known: Known, left: Mapping[str, Variant], rng: np.random.Generator
) -> str:
    """The label of `left` that promises the most hypervolume a second."""
    front, imagined = _values(scorer, known, None), {}
    for label, variant in left.items():
        imagined[label] = [
            _values(scorer, _with(known, variant, scorer, rng), variant) for _ in range(DRAWS)
        ]
    everything = np.concatenate([front, *(v for values in imagined.values() for v in values)])
    everything = everything[pareto.pareto_front(everything, ["minimize"] * front.shape[1])]
    ideal, nadir = everything.min(axis=0), everything.max(axis=0)
    span = np.where(nadir > ideal, nadir - ideal, 1.0)

    def volume(values: Floats) -> float:
        return pareto.hypervolume((values - ideal) / span, np.full(ideal.size, REFERENCE))

    before = volume(front)
    promise = {
        label: (np.mean([volume(np.concatenate([front, v])) for v in values]) - before)
        / expected_seconds(known, left[label])
        for label, values in imagined.items()
    }
    return max(promise, key=lambda label: promise[label])


def agreement(known: Known, new: Variant) -> Floats:
    """(known,): expected share of samples on which `new` answers as each known variant.

    Kernel regression over the evaluated pairs; without any, what is lost scorers with every bit.
    """
    pairs = [(i, j) for i in range(len(known.variants)) for j in range(i)]
    seen = np.array([_pair(known.variants[i], known.variants[j]) for i, j in pairs])
    share = np.array([(known.codes[i] == known.codes[j]).mean() for i, j in pairs])
    found = []
    for variant in known.variants:
        wanted = _pair(new, variant)
        weight = np.exp(-np.abs(seen - wanted).sum(axis=1)) if pairs else np.zeros(0)
        kept = (1 - _loss(new)) * (1 - _loss(variant))
        found.append((weight @ share + PRIOR * kept) / (weight.sum() + PRIOR))
    return np.array(found)


def imagine(
    codes: AnswerCodes, agree: Floats, labels: AnswerCodes, rng: np.random.Generator
) -> AnswerCodes:
    """(samples,) answers that equal each known variant's about as often as `agree` says.

    The most alike is copied; elsewhere a random other one is, or an answer given to another sample
    with as many labels (`labels`, (samples,)).
    """
    closest, samples = int(agree.argmax()), codes.shape[1]
    stray = codes[closest].copy()
    for n in np.unique(labels):
        rows = np.flatnonzero(labels == n)
        stray[rows] = stray[rng.permutation(rows)]
    others = np.concatenate([np.delete(codes, closest, axis=0), stray[None]])
    elsewhere = others[rng.integers(0, len(others), samples), np.arange(samples)]
    by_chance = float((elsewhere == codes[closest]).mean())
    copied = (agree[closest] - by_chance) / (1 - by_chance) if by_chance < 1 else 1.0
    return np.where(rng.random(samples) < copied, codes[closest], elsewhere)


def expected_seconds(known: Known, new: Variant) -> float:
    """As the evaluated variants of the same method, else as all."""
    alike = [
        s for v, s in zip(known.variants, known.seconds, strict=True) if v.method == new.method
    ]
    return max(float(np.median(alike or known.seconds)), 1e-9)


def expected_cost(known: Known, new: Variant) -> VariantCost:
    """Bytes of its own follow the bits, the rest is shared as by the known; latency of the dense
    model.
    """
    dense = known.costs[0]
    shared: dict[str, int] = {}
    own = []  # bits, bytes that the variant does not share with the dense model
    for variant, cost in zip(known.variants[1:], known.costs[1:], strict=True):
        shared = {key: size for key, size in cost.tensors.items() if key in dense.tensors}
        own.append((variant.bits, sum(cost.tensors.values()) - sum(shared.values())))
    unshared = sum(dense.tensors.values()) - sum(shared.values())
    bits, size = min(own, key=lambda each: abs(each[0] - new.bits), default=(16, unshared))
    tensors = {**shared, new.id: int(size * new.bits / bits)}
    return VariantCost(tensors, int(dense.kv_bytes * new.kv_bits / 16), dense.latency_ms)


def _values(scorer: EnsembleScorer, known: Known, new: Variant | None) -> Floats:
    """(ensembles, objectives), minimized: the front of those of the known members; with `new`,
    which stands last, only those that contain it.
    """
    wanted = study_config(scorer.config)
    names, n = chosen_objectives(wanted), len(known.variants) - 1
    if not n:
        return np.empty((0, len(names)))
    if new is None:
        masks = enumeration.enumerate_ensembles(n, wanted.max_members)
    else:
        size = wanted.max_members - 1
        while size > 1 and sum(comb(n - 1, s) for s in range(size + 1)) > AHEAD:
            size -= 1
        none = np.zeros(1, dtype=np.uint32)
        masks = np.concatenate(
            [none, *([enumeration.enumerate_ensembles(n - 1, size)] if n > 1 else [])]
        )
        masks |= np.uint32(1 << (n - 1))
    precision = np.array([variant.precision for variant in known.variants[1:]])
    weights = scorer.config.trust.weights
    found = enumeration.score_all(scorer.asked, known.codes[1:], precision, weights, masks)
    mode, answers = scorer.config.latency.mode, (known.codes[1:], precision)
    cost = enumeration.cost_all(known.costs[1:], mode, masks, answers)
    found |= dict(zip(Cost._fields, cost, strict=True))
    found = with_objectives(found)
    values = losses(np.stack([found[name] for name in names], axis=1), names)
    return values[pareto.pareto_front(values, ["minimize"] * len(names))]


def _with(known: Known, new: Variant, scorer: EnsembleScorer, rng: np.random.Generator) -> Known:
    said = imagine(known.codes, agreement(known, new), scorer.asked.n_labels, rng)
    return Known(
        [*known.variants, new],
        np.concatenate([known.codes, said[None]]),
        [*known.costs, expected_cost(known, new)],
        known.seconds,
    )


def _pair(a: Variant, b: Variant) -> Floats:
    """What the agreement of two variants may depend on, in units of about equal effect."""
    bits = sorted(min(v.bits, LOSSLESS) for v in (a, b))
    return np.array([*bits, 0.5 * (a.method != b.method), 0.5 * (a.seed != b.seed)], dtype=float)


def _loss(variant: Variant) -> float:
    """Share of answers that compression changes, before anything is known."""
    return 0.0 if variant.bits >= LOSSLESS else min(0.6, 2.5 * 2.0**-variant.bits)
