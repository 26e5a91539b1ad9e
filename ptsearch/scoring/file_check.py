"""What is known of a user's own questions without a model."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from statistics import NormalDist

from ptsearch.benchmarks import Benchmark, Sample, repeats
from ptsearch.benchmarks.split import HOLDOUT, SEARCH, half

GAIN, DIFFER, LEVEL, POWER = 0.02, 0.10, 0.05, 0.80  # for which `samples_needed` is told


def check(own: Sequence[Benchmark], path: Path, salt: str) -> str:
    """What is known of a file without a model, in lines. ValueError: a half of the items has none
    of a scenario, or lacks a label of a group.
    """
    lines: list[str] = []
    for benchmark in repeats.merge(own, salt):
        for name, scenario in benchmark.scenarios.items():
            samples = [s for s in benchmark.samples if s.scenario == name]
            lines += _about(f"{benchmark.name}/{name}", scenario.mode, samples, path, salt)
        held = sum(half(sample.item, salt) == HOLDOUT for sample in benchmark.samples)
        needed = samples_needed(GAIN, DIFFER)
        lines.append(
            f"{benchmark.name}: to show a gain of {GAIN:.0%} takes {needed:,} held-out samples, "
            f"about {2 * needed:,} rows (paired proportions, Connor 1987: {DIFFER:.0%} of answers "
            f"change, level {LEVEL:.0%}, power {POWER:.0%}); there are {held}"
        )
        lines += [f"* {note}" for note in benchmark.notes]
    return "\n".join(dict.fromkeys(lines))


def samples_needed(gain: float, differ: float) -> int:
    """Pairs for a two-sided McNemar test to find the difference `gain` of two accuracies, where a
    share `differ` of samples is right in one and wrong in the other (Connor 1987,
    https://doi.org/10.2307/2531961).
    """
    level, power = NormalDist().inv_cdf(1 - LEVEL / 2), NormalDist().inv_cdf(POWER)
    root = level * math.sqrt(differ) + power * math.sqrt(differ - gain**2)
    return math.ceil((root / gain) ** 2)


def _about(
    place: str, mode: str, samples: Sequence[Sample], path: Path, salt: str
) -> Iterator[str]:
    labels = [*samples[0].question.labels, *samples[0].question.abstain]
    halves: dict[str, list[Sample]] = {SEARCH: [], HOLDOUT: []}
    for sample in samples:
        halves[half(sample.item, salt)].append(sample)
    gold, most = Counter(sample.gold for sample in samples).most_common(1)[0]
    yield (
        f"{place}: {len(samples)} samples of {len({s.item for s in samples})} items, "
        f"{' and '.join(f'{len(part)} {side}' for side, part in halves.items())}; {mode} among "
        f"{', '.join(labels)}; most frequent is {labels[gold]} ({most / len(samples):.0%})"
    )
    if repeated := len(samples) - len({s.prompt for s in samples}):
        yield f"* {place}: {repeated} exact duplicates, each in the half of the first"
    for side, part in halves.items():
        if not part:
            raise ValueError(f"{path}:{samples[0].id}: expected samples of {place} on both halves, "
                             f"{side} has none: give more, less alike, or `item`")  # fmt: skip
        if len({s.gold for s in part}) == 1:
            yield f"* {place}: one class only on the {side} half, which can show no skill"
        for group in sorted({s.stratum for s in samples} - {""}):
            for missing in {0, 1} - {s.gold for s in part if s.stratum == group}:
                line = next(s.id for s in samples if s.stratum == group)
                raise ValueError(f"{path}:{line}: expected {labels[missing]!r} in group {group} "
                                 f"on the {side} half: fairness is not estimable")  # fmt: skip
    if alike := [f"{a!r} and {b!r}" for a, b in combinations(labels, 2) if a[0] == b[0]]:
        yield f"* {place}: labels that begin alike, told apart by later tokens: {alike[0]}"
