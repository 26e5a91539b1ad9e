"""All benchmarks of a source, with the overrides and the limit of a config."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ptsearch.benchmarks import Benchmark, BenchmarkDefinition, Scenario, hub, own_file, repeats
from ptsearch.benchmarks.prompts import rendered
from ptsearch.benchmarks.registry import BENCHMARKS
from ptsearch.benchmarks.split import limit, select
from ptsearch.config import BenchmarksConfig
from ptsearch.shared import one_of


def load(config: BenchmarksConfig, cache: Path) -> list[Benchmark]:
    """All benchmarks of the source in the order of BENCHMARKS; ValueError: the source, a scenario
    or a mode is unknown.

    A file of the user's own comes last; patterns that match nothing of it leave it whole.
    Without `config.root` the published sets come from the hub, converted into `cache`.
    """
    for name in config.also:
        one_of("benchmarks.also", name, tuple(n for n, d in BENCHMARKS.items() if not d.on))
        if config.name == "pocket" and BENCHMARKS[name].load_pocket is None:
            raise ValueError(f"benchmarks.also: {name} has published samples only: "
                             "give benchmarks=paper benchmarks.root=FOLDER")  # fmt: skip
    asked = [d for name, d in BENCHMARKS.items() if d.on or name in config.also]
    if config.name == "pocket":
        loaded = [d.load_pocket() for d in asked if d.load_pocket]
    elif config.name == "paper":
        loaded = [_published(d, config, cache) for d in asked if d.load_paper]
    elif config.name == "file":
        loaded = []
    else:
        raise ValueError(f"benchmarks must be pocket, paper or file, got {config.name!r}")
    own = own_file.load(Path(config.path)) if config.path or not loaded else []
    loaded += own
    for pattern in config.scenarios:
        if not any(select(b, [pattern.removeprefix("-")]).scenarios for b in loaded):
            raise ValueError(f"benchmarks.scenarios: no scenario matches {pattern!r}")
    overrides = {"mode": config.mode, "calibrate": config.calibrate, "refusal": config.refusal}
    _check_names(overrides, loaded)
    merged = repeats.merge(loaded, config.split.salt)  # before any choice of samples
    chosen = [_overridden(_chosen(benchmark, config.scenarios), config) for benchmark in merged]
    return [
        rendered(limit(benchmark, config.limit, config.split.salt), config.prompt)
        for benchmark in chosen
    ]


def load_published(definition: BenchmarkDefinition, root: Path) -> Benchmark:
    """The published samples from the files below `root`."""
    if definition.load_paper is None:
        raise ValueError(f"{definition.name} has no published samples")
    return definition.load_paper(root)


def _published(definition: BenchmarkDefinition, config: BenchmarksConfig, cache: Path) -> Benchmark:
    if config.root:
        return load_published(definition, Path(config.root))
    root = hub.fetch(definition, cache / "benchmarks")
    benchmark = load_published(definition, root)
    return replace(benchmark, source="hub", data=benchmark.data | hub.source(root))


def _chosen(benchmark: Benchmark, patterns: Sequence[str]) -> Benchmark:
    """The scenarios that match the patterns; a note lists scored ones that do not."""
    kept = select(benchmark, patterns)
    if benchmark.source == "file" and not kept.scenarios:
        return benchmark
    groups: dict[str, list[str]] = {}
    for name, scenario in benchmark.scenarios.items():
        if scenario.scored:
            groups.setdefault(scenario.subscore, []).append(name)
    excluded: list[str] = []
    for subscore, names in groups.items():
        missing = [name for name in names if name not in kept.scenarios]
        whole = len(missing) == len(names) > 1
        excluded += [f"{subscore} ({len(names)} scenarios)"] if whole else missing
    if not excluded:
        return kept
    note = f"left out by benchmarks.scenarios: {', '.join(excluded)}"
    return replace(kept, notes=(*kept.notes, note))


def _overridden(benchmark: Benchmark, config: BenchmarksConfig) -> Benchmark:
    def change(scenario: Scenario) -> Scenario:
        mode = config.mode.get(scenario.name, config.mode.get("*", scenario.mode))
        if scenario.free and mode != scenario.mode:
            if scenario.name in config.mode:
                raise ValueError(f"scenario {scenario.name} has no labels for {mode!r}")
            mode = scenario.mode
        everywhere = config.calibrate.get("*", scenario.calibrate)
        calibrate = config.calibrate.get(scenario.name, everywhere)
        if calibrate != "none" and calibrate not in scenario.calibration:
            if scenario.name in config.calibrate:
                raise ValueError(f"scenario {scenario.name} has no prompts for {calibrate!r}")
            calibrate = "none"
        refusal = config.refusal.get(scenario.name, config.refusal.get("*", scenario.refusal))
        return replace(scenario, mode=mode, calibrate=calibrate, refusal=refusal)

    changed = {name: change(scenario) for name, scenario in benchmark.scenarios.items()}
    return replace(benchmark, scenarios=changed)


def _check_names(overrides: Mapping[str, Mapping[str, str]], benchmarks: list[Benchmark]) -> None:
    known = {name for benchmark in benchmarks for name in benchmark.scenarios} | {"*"}
    for key, values in overrides.items():
        for name in values:
            if name not in known:
                raise ValueError(
                    f"benchmarks.{key}: no scenario {name!r}; there are {', '.join(sorted(known))}"
                )
