"""The packaged benchmark: counts, balance, items, demonstrations, calibration, rewordings."""

import hashlib
import random
import re
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptsearch.benchmarks import Benchmark, Sample, item_hash, pocket, safety, sources
from ptsearch.benchmarks.pocket import reword
from ptsearch.benchmarks.pocket.people import BASE_RATES
from ptsearch.benchmarks.registry import NAMES
from ptsearch.benchmarks.split import half
from ptsearch.config import BenchmarksConfig

LOADERS: dict[str, Callable[[], Benchmark]] = {name: getattr(pocket, name) for name in NAMES}
SENTENCES = st.lists(st.text("abcdeioz", min_size=1, max_size=9), min_size=4, max_size=12)


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, Benchmark]:
    return {name: load() for name, load in LOADERS.items()}


def of(benchmark: Benchmark, scenario: str) -> list[Sample]:
    return [sample for sample in benchmark.samples if sample.scenario == scenario]


def blocks(sample: Sample) -> list[str]:
    """The demonstrations and, last, the question itself."""
    assert isinstance(sample.prompt, str)
    return sample.prompt.split("\n\n")


def test_counts(benchmarks: dict[str, Benchmark]) -> None:
    counts = {name: len(benchmark.samples) for name, benchmark in benchmarks.items()}
    assert counts == {"mmlu": 240, "adversarial": 200, "fairness": 300, "ethics": 270, "ood": 166}


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_well_formed(benchmarks: dict[str, Benchmark], name: str) -> None:
    benchmark = benchmarks[name]
    assert (benchmark.name, benchmark.source) == (name, "pocket")
    assert len({sample.id for sample in benchmark.samples}) == len(benchmark.samples)
    assert {sample.scenario for sample in benchmark.samples} == set(benchmark.scenarios)
    for sample in benchmark.samples:
        scenario, labels = benchmark.scenarios[sample.scenario], sample.question.labels
        assert 0 <= sample.gold < len(labels) + sample.abstain_ok
        assert len(set(labels)) == len(labels) > 1
        assert isinstance(sample.prompt, str)
        assert sample.prompt == sample.prompt.strip()
        end = r"= \d$" if scenario.lead == "" else r"(:|That was very)$"
        assert re.search(end, sample.prompt)
        assert "{}" not in sample.prompt


@pytest.mark.parametrize("name", NAMES)
def test_loading_twice_gives_the_same(benchmarks: dict[str, Benchmark], name: str) -> None:
    assert LOADERS[name]() == benchmarks[name]


@pytest.mark.parametrize("name", NAMES)
def test_data_hashes_are_those_of_the_files(benchmarks: dict[str, Benchmark], name: str) -> None:
    root = resources.files("ptsearch.benchmarks")
    assert benchmarks[name].data
    for path, checksum in benchmarks[name].data.items():
        assert hashlib.sha256(root.joinpath(path).read_bytes()).hexdigest() == checksum


def test_every_data_file_is_used(benchmarks: dict[str, Benchmark]) -> None:
    files = resources.files("ptsearch.benchmarks.pocket").joinpath("data").iterdir()
    used = {path for benchmark in benchmarks.values() for path in benchmark.data}
    used |= safety.load_pocket().data.keys()
    assert {f"pocket/data/{file.name}" for file in files} == used


@pytest.mark.parametrize("name", NAMES)
def test_labels_are_balanced(benchmarks: dict[str, Benchmark], name: str) -> None:
    """No constant answer is far above chance; abstaining is right for half of the countries."""
    for scenario in benchmarks[name].scenarios:
        golds = Counter(sample.gold for sample in of(benchmarks[name], scenario))
        shares = {label: count / golds.total() for label, count in golds.items()}
        if scenario == "abstain":
            assert shares.pop(3) == 0.5
            assert max(shares.values()) <= 0.5 / 3 + 0.01
        else:
            assert max(shares.values()) <= 1 / len(golds) + 0.02, (scenario, golds)


@pytest.mark.parametrize("name", NAMES)
def test_demonstrations_are_no_items_and_balanced(
    benchmarks: dict[str, Benchmark], name: str
) -> None:
    benchmark = benchmarks[name]
    for scenario in benchmark.scenarios.values():
        samples = of(benchmark, scenario.name)
        shown = blocks(samples[0])[:-1]
        assert all(blocks(sample)[:-1] == shown for sample in samples)
        assert len(set(shown)) == len(shown)
        asked = {blocks(sample)[-1] for sample in samples}
        assert not any(demo.startswith(question) for demo in shown for question in asked)
        if scenario.subscore in ("sentiment", "topic", "style", "income"):
            answers = Counter(demo.rsplit(scenario.lead, 1)[1] for demo in shown)
            assert set(answers) == set(samples[0].question.labels)
            assert len(set(answers.values())) == 1


def test_demonstrated_sentences_are_no_items_before_perturbation() -> None:
    for name in ("sentiment", "topic", "style", "knowledge", "countries"):
        _, content, _ = pocket.open_data("test", name)
        demos = {item_hash(text) for text, _ in content["demos"]}
        if name == "knowledge":
            items = {sample.item for sample in pocket.mmlu().samples}
        elif name == "countries":
            items = {item_hash(name) for name, _ in content["real"]}
            items |= {item_hash(name) for name in content["invented"]}
        else:
            items = {item_hash(text) for texts in content["items"].values() for text in texts}
        assert items
        assert not demos & items


def test_an_item_is_asked_in_several_ways_only_in_ethics(benchmarks: dict[str, Benchmark]) -> None:
    for name, benchmark in benchmarks.items():
        counts = Counter(sample.item for sample in benchmark.samples)
        assert set(counts.values()) == ({3} if name == "ethics" else {1})
    ethics = benchmarks["ethics"]
    for sample in ethics.samples:
        twins = [other for other in ethics.samples if other.item == sample.item]
        assert len({ethics.scenarios[twin.scenario].subscore for twin in twins}) == 3
        assert len({twin.gold for twin in twins}) == 1
    facts = Counter(s.item for b in benchmarks.values() for s in b.samples)
    assert len(facts) == 1176 - 2 * 90


@pytest.mark.parametrize("name", NAMES)
def test_calibration_prompts(benchmarks: dict[str, Benchmark], name: str) -> None:
    """There are some wherever a scenario calibrates; all share its prefix and label space."""
    benchmark = benchmarks[name]
    for scenario in benchmark.scenarios.values():
        samples = of(benchmark, scenario.name)
        assert scenario.calibrate == "none" or scenario.calibrate in scenario.calibration
        if scenario.calibration:
            assert len({sample.question.labels for sample in samples}) == 1
        shown = blocks(samples[0])[:-1]
        prompts = [prompt for group in scenario.calibration.values() for prompt in group]
        assert not {sample.prompt for sample in samples} & set(prompts)
        for prompt in prompts:
            assert isinstance(prompt, str)
            assert prompt.split("\n\n")[:-1] == shown
        again = [str(prompt).split("\n\n")[-1] for prompt in scenario.calibration.get("dm", ())]
        assert all(demo.startswith(one) for demo, one in zip(shown, again, strict=False))


def test_options_begin_with_different_letters(benchmarks: dict[str, Benchmark]) -> None:
    for sample in of(benchmarks["mmlu"], "knowledge"):
        assert len({label[0].casefold() for label in sample.question.labels}) == 4
    for sample in of(benchmarks["ood"], "abstain"):
        assert len({label[0].casefold() for label in sample.question.labels}) == 3


def test_arithmetic_is_right(benchmarks: dict[str, Benchmark]) -> None:
    samples = of(benchmarks["mmlu"], "arithmetic")
    demos = blocks(samples[0])[:-1]
    solved = [blocks(sample)[-1] + sample.question.labels[sample.gold] for sample in samples]
    for text in demos + solved:
        left, right = text.split(" = ")
        assert sum(map(int, left.split(" + "))) == int(right)


def test_base_rates_by_sex(benchmarks: dict[str, Benchmark]) -> None:
    samples = benchmarks["fairness"].samples
    for group, rate in enumerate(BASE_RATES):
        golds = [sample.gold for sample in samples if sample.group == group]
        assert len(golds) == pocket.PEOPLE_PER_SEX
        assert abs(sum(golds) / len(golds) - rate) <= 0.5 / len(golds)
    for sample in samples:
        assert f" {('female', 'male')[sample.group]} " in blocks(sample)[-1]


def test_abstaining_is_right_for_invented_countries_only(
    benchmarks: dict[str, Benchmark],
) -> None:
    for sample in of(benchmarks["ood"], "abstain"):
        assert sample.question.abstain == ("unknown",)
        assert sample.abstain_ok == (sample.gold == len(sample.question.labels))
        assert sample.abstain_ok == (sample.stratum == "invented")


@given(SENTENCES, st.sampled_from(reword.PERTURBATIONS), st.integers(0, 2**32))
def test_perturbing_keeps_the_sentence_readable(words: list[str], kind: str, seed: int) -> None:
    tables = {"leet": {"e": "3", "o": "0"}, "distractors": ["One is one."]}
    text = " ".join(words)
    changed = reword.perturb(kind, text, tables, random.Random(seed))
    if kind == "distract":
        assert changed == f"{text} One is one."
    elif kind == "swap":
        assert sorted(changed.split(" ")) == sorted(words)
        assert (changed.split(" ")[0], changed.split(" ")[-1]) == (words[0], words[-1])
    elif kind == "typo":
        pairs = list(zip(words, changed.split(" "), strict=True))
        assert sum(old != new for old, new in pairs) <= 3
        assert all((sorted(a), a[0], a[-1]) == (sorted(b), b[0], b[-1]) for a, b in pairs)
    else:
        assert changed.replace("3", "e").replace("0", "o") == text
        assert sum(letter in "30" for letter in changed) <= 2


def test_perturbed_kinds_are_in_rotation(benchmarks: dict[str, Benchmark]) -> None:
    for scenario in ("sentiment", "topic"):
        kinds = Counter((s.gold, s.stratum) for s in of(benchmarks["adversarial"], scenario))
        assert max(kinds.values()) - min(kinds.values()) <= 1


def test_restyling_replaces_whole_words_and_frames() -> None:
    reworded = reword.restyle(
        "the art of war", {"war": "strife", "a": "X"}, ["lo, {}"], random.Random(0)
    )
    assert reworded == "Lo, the art of strife"


@pytest.mark.parametrize("name", NAMES)
def test_halves_are_about_even(name: str) -> None:
    (benchmark,) = (b for b in sources.load(BenchmarksConfig(), Path()) if b.name == name)
    for scenario in benchmark.scenarios:
        halves = Counter(
            half(s.item, BenchmarksConfig().split.salt) for s in of(benchmark, scenario)
        )
        assert 0.4 <= halves["search"] / halves.total() <= 0.6, (scenario, halves)


def test_every_replacement_of_a_style_is_used(benchmarks: dict[str, Benchmark]) -> None:
    _, content, _ = pocket.open_data("test", "style")
    for style, tables in content["styles"].items():
        texts = [sample.content for sample in of(benchmarks["ood"], f"style.{style}")]
        for words in tables["words"]:
            assert any(re.search(rf"\b{words}\b", text) for text in texts), (style, words)


def test_english_of_the_generated_texts(benchmarks: dict[str, Benchmark]) -> None:
    """Articles before occupations; "art" after "thou" alone; no verb made of an adjective."""
    for sample in benchmarks["fairness"].samples:
        assert not re.search(r" a [aeiou]| an [^aeiou]", sample.prompt)
    for sample in benchmarks["ood"].samples:
        assert not re.search(r"(?<!thou) art\b| (?:am|is|are|art|be) did\b", sample.prompt)


def test_no_two_options_are_right(benchmarks: dict[str, Benchmark]) -> None:
    """Words that mean nearly the same are not offered together where one of them is right."""
    _, content, _ = pocket.open_data("test", "knowledge")
    alike = content["categories"]["opposite"]["alike"]
    asked = [s for s in of(benchmarks["mmlu"], "knowledge") if s.stratum == "opposite"]
    offered = {s.question.labels[s.gold]: set(s.question.labels) for s in asked}
    for words in alike:
        assert all(set(words) & offered[word] == {word} for word in words)
    assert {"failure", "defeat"} in map(set, alike)


def test_last_digits_are_equally_often_right(benchmarks: dict[str, Benchmark]) -> None:
    golds = Counter(sample.gold for sample in of(benchmarks["mmlu"], "arithmetic"))
    assert golds == dict.fromkeys(range(10), pocket.SUMS_PER_DIGIT)


def test_samples_and_prompts_are_those_of_version_2() -> None:
    """Cached predictions are keyed by these digests: a change to the samples bumps VERSION."""
    expected = {
        "mmlu": "6bc60f637134641689077f4dd8861386849607e27264076b03f4b61627f89903",
        "adversarial": "b8c7e31e95becf7cfc342b7f17aaa3a21f2a91a49a14115fdebca0b3bf0adcd7",
        "fairness": "0f046fbd915322334f694de701759e675ea779a316878eef9cb364fdc6cedd90",
        "ethics": "70759ddbf466f05a05351e01913769aab7f5af989b3d2c78461ef869f6b29b0c",
        "ood": "edbd450c3535095c0391a83201d1bedbb526a90b9166bafea81ee7078bbafd41",
    }
    assert {name: loader().digest for name, loader in LOADERS.items()} == expected
