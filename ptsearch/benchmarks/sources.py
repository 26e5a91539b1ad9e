"""The five benchmarks from a source, with the overrides and the limit of a config."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ptsearch.benchmarks import (
    NAMES,
    Benchmark,
    Scenario,
    adversarial,
    ethics,
    fairness,
    hub,
    mmlu,
    ood,
    pocket,
)
from ptsearch.benchmarks.prompts import rendered
from ptsearch.benchmarks.split import limit, select
from ptsearch.config import BenchmarksConfig

POCKET: dict[str, Callable[[], Benchmark]] = {
    "mmlu": pocket.mmlu,
    "adversarial": pocket.adversarial,
    "fairness": pocket.fairness,
    "ethics": pocket.ethics,
    "ood": pocket.ood,
}
PAPER: dict[str, Callable[[Path], Benchmark]] = {
    "mmlu": mmlu.load,
    "adversarial": adversarial.load,
    "fairness": fairness.load,
    "ethics": ethics.load,
    "ood": ood.load,
}


def load(config: BenchmarksConfig, cache: Path) -> list[Benchmark]:
    """All five, in the order of NAMES; unknown sources, scenarios or modes are a ValueError.

    Without `config.root` the published sets come from the hub, converted into `cache`.
    """
    if config.name == "pocket":
        found = [POCKET[name]() for name in NAMES]
    elif config.name == "paper":
        found = [_published(name, config, cache) for name in NAMES]
    else:
        raise ValueError(f"benchmarks must be pocket or paper, got {config.name!r}")
    for pattern in config.scenarios:
        if not any(select(b, [pattern.removeprefix("-")]).scenarios for b in found):
            raise ValueError(f"benchmarks.scenarios: no scenario matches {pattern!r}")
    _check_names({"mode": config.mode, "calibrate": config.calibrate}, found)
    chosen = [_overridden(_chosen(benchmark, config.scenarios), config) for benchmark in found]
    return [
        rendered(limit(benchmark, config.limit, config.split.salt), config.prompt)
        for benchmark in chosen
    ]


def _published(name: str, config: BenchmarksConfig, cache: Path) -> Benchmark:
    if config.root:
        return PAPER[name](Path(config.root))
    root = hub.fetch(name, cache / "benchmarks")
    benchmark = PAPER[name](root)
    return replace(benchmark, source="hub", data=benchmark.data | hub.source(root))


def _chosen(benchmark: Benchmark, patterns: Sequence[str]) -> Benchmark:
    """What the patterns select; a note names what counts and is left out."""
    kept = select(benchmark, patterns)
    groups: dict[str, list[str]] = {}
    for name, scenario in benchmark.scenarios.items():
        if scenario.scored:
            groups.setdefault(scenario.subscore, []).append(name)
    left: list[str] = []
    for subscore, names in groups.items():
        missing = [name for name in names if name not in kept.scenarios]
        whole = len(missing) == len(names) > 1
        left += [f"{subscore} ({len(names)} scenarios)"] if whole else missing
    if not left:
        return kept
    note = f"left out by benchmarks.scenarios: {', '.join(left)}"
    return replace(kept, notes=(*kept.notes, note))


def _overridden(benchmark: Benchmark, config: BenchmarksConfig) -> Benchmark:
    def change(scenario: Scenario) -> Scenario:
        mode = config.mode.get(scenario.name, config.mode.get("*", scenario.mode))
        calibrate = config.calibrate.get(
            scenario.name, config.calibrate.get("*", scenario.calibrate)
        )
        if calibrate != "none" and calibrate not in scenario.calibration:
            if scenario.name in config.calibrate:
                raise ValueError(f"scenario {scenario.name} has no prompts for {calibrate!r}")
            calibrate = "none"
        return replace(scenario, mode=mode, calibrate=calibrate)

    changed = {name: change(scenario) for name, scenario in benchmark.scenarios.items()}
    return replace(benchmark, scenarios=changed)


def _check_names(overrides: Mapping[str, Mapping[str, str]], found: list[Benchmark]) -> None:
    known = {name for benchmark in found for name in benchmark.scenarios} | {"*"}
    for key, values in overrides.items():
        for name in values:
            if name not in known:
                raise ValueError(
                    f"benchmarks.{key}: no scenario {name!r}; there are {', '.join(sorted(known))}"
                )
