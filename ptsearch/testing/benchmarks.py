"""Laws of a benchmark: what every definition and its loaders must give."""

from collections import Counter
from pathlib import Path

from ptsearch.benchmarks import (
    Benchmark,
    BenchmarkDefinition,
    Sample,
    Scenario,
    item_hash,
)
from ptsearch.benchmarks.parsing import PARSERS, Rule
from ptsearch.benchmarks.split import HOLDOUT, SEARCH, half

SALT = "ptsearch"  # of the split, the default


def check_benchmark(definition: BenchmarkDefinition, root: Path | None = None) -> None:
    """AssertionError: the definition, or what it loads, breaks a law.

    Its embedded samples are loaded, and those below `root` where that is given; each twice.
    """
    loaders = [definition.load_pocket] if definition.load_pocket else []
    published = definition.load_paper
    if published and root:
        loaders.append(lambda: published(root))
    assert loaders, f"{definition.name}: nothing to load: load_pocket, or load_paper and a root"
    parsers = {name: parser.clean for name, parser in {**PARSERS, **definition.parsers}.items()}
    for load in loaders:
        benchmark, again = load(), load()
        assert benchmark.name == definition.name, (
            f"the samples of {definition.name} call themselves {benchmark.name!r}"
        )
        assert benchmark.digest == again.digest, f"{benchmark.name}: loading it twice differs"
        _check_samples(benchmark, parsers)


def _check_samples(benchmark: Benchmark, parsers: dict[str, Rule]) -> None:
    assert benchmark.samples, f"{benchmark.name} has no samples"
    repeated = [id for id, n in Counter(s.id for s in benchmark.samples).items() if n > 1]
    assert not repeated, f"{benchmark.name}: sample ids must be unique, {repeated[0]!r} is not"
    for name, scenario in benchmark.scenarios.items():
        samples = [sample for sample in benchmark.samples if sample.scenario == name]
        where = f"{benchmark.name}/{name}"
        assert scenario.name == name, f"{where}: its scenario calls itself {scenario.name!r}"
        _check_scenario(where, scenario, samples)
        assert scenario.parse in parsers, f"{where}: there is no parser {scenario.parse!r}"
        for sample in samples:
            _check_sample(f"{where}, sample {sample.id}", parsers[scenario.parse], sample)
    unknown = {s.scenario for s in benchmark.samples} - benchmark.scenarios.keys()
    assert not unknown, f"{benchmark.name}: samples of unknown scenarios {sorted(unknown)}"


def _check_scenario(where: str, scenario: Scenario, samples: list[Sample]) -> None:
    assert samples, f"{where} has no samples"
    assert scenario.max_new_tokens >= 1, f"{where}: max_new_tokens must be at least 1"
    if scenario.calibrate != "none":
        prompts = scenario.calibration.get(scenario.calibrate)
        assert prompts, f"{where}: calibrate={scenario.calibrate} has no calibration prompts"
        spaces = {sample.question.labels for sample in samples}
        assert len(spaces) == 1, f"{where}: calibrated samples must share their labels"
    if scenario.scored:
        halves = {half(sample.item, SALT) for sample in samples}
        assert halves == {SEARCH, HOLDOUT}, f"{where}: all its items are in one half"
    if scenario.metric == "parity":
        groups = {sample.group for sample in samples}
        assert groups == {0, 1}, f"{where}: parity needs groups 0 and 1, got {sorted(groups)}"


def _check_sample(where: str, parse: Rule, sample: Sample) -> None:
    labels = sample.question.labels
    answers = (*labels, *sample.question.abstain[:1])
    assert len(answers) >= 2, f"{where}: at least two labels, got {labels}"
    assert len({label.strip() for label in labels} - {""}) == len(labels), (
        f"{where}: labels must be different and not empty, got {labels}"
    )
    declines = len(labels) if sample.abstain_ok else len(labels) - 1
    assert 0 <= sample.gold <= declines, f"{where}: gold={sample.gold} of {len(labels)} labels"
    assert sample.group in (-1, 0, 1), f"{where}: group must be -1, 0 or 1, got {sample.group}"
    assert sample.prompt, f"{where}: the prompt is empty"
    assert len(sample.item) == 64 and set(sample.item) <= set("0123456789abcdef"), (
        f"{where}: item must be item_hash of its content, got {sample.item!r}"
    )
    if isinstance(sample.prompt, str):
        assert sample.item != item_hash(sample.prompt), (
            f"{where}: item must hash the content before perturbation and prompt"
        )
    for code, label in enumerate(labels):
        read = parse(label, sample.question)
        assert read == code, f"{where}: the reply {label!r} is read as {read}, expected {code}"
