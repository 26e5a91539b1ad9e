"""Questions that repeat one another are one item, so they are in one half."""

import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from paper_root import SHARED, needs_shared, write_root

from ptsearch.benchmarks import Benchmark, Sample, Scenario, item_hash, repeats, sources
from ptsearch.benchmarks.parsing import Question
from ptsearch.benchmarks.split import half
from ptsearch.config import BenchmarksConfig

SALT = "ptsearch"
TEXTS = st.lists(st.lists(st.sampled_from("abcdefgh"), max_size=9).map(" ".join), max_size=12)


def benchmark(name: str, *texts: str, compared: bool = True) -> Benchmark:
    samples = tuple(
        Sample(f"{name}/{i}", item_hash(text), "plain", text, Question(("no", "yes")), 0,
               content=text if compared else "")
        for i, text in enumerate(texts)
    )  # fmt: skip
    return Benchmark(name, "file", 1, {"plain": Scenario("plain", "plain")}, samples, {})


def items(benchmarks: list[Benchmark]) -> list[str]:
    return [sample.item for each in benchmarks for sample in each.samples]


def similar(a: str, b: str) -> bool:
    """The definition, written out."""
    words = [defaultdict(int), defaultdict(int)]
    for counts, text in zip(words, (a, b), strict=True):
        for word in text.split():
            counts[word] += 1
    every = words[0].keys() | words[1].keys()
    least = sum(min(words[0][word], words[1][word]) for word in every)
    most = sum(max(words[0][word], words[1][word]) for word in every)
    return most > 0 and least / most >= repeats.SIMILAR


@given(TEXTS)
def test_items_are_the_connected_parts_of_similar_texts(texts: list[str]) -> None:
    group = list(range(len(texts)))
    for a, b in itertools.combinations(range(len(texts)), 2):
        if texts[a] == texts[b] or similar(texts[a], texts[b]):
            group = [min(group[a], group[b]) if g in (group[a], group[b]) else g for g in group]
    found = items(repeats.merge([benchmark("a", *texts)], SALT))
    assert found == [item_hash(texts[first]) for first in group]


def test_the_same_sentence_in_two_benchmarks_is_one_item() -> None:
    first = benchmark("a", "A fine film, truly .", "Who wrote it?")
    second = benchmark("b", "a fine film truly", "It was a fine film", "who wrote it", "fine")
    merged = repeats.merge([first, second], SALT)
    one, two = item_hash("A fine film, truly ."), item_hash("Who wrote it?")
    assert items(merged) == [one, two, one, item_hash("It was a fine film"), two, item_hash("fine")]
    moved = sum(half(a.item, SALT) != half(b.item, SALT)
                for a, b in zip(second.samples, merged[1].samples, strict=True))  # fmt: skip
    assert (merged[0].moved, merged[1].moved) == (0, moved)
    assert repeats.merge([first], SALT)[0].samples == merged[0].samples  # others do not move it


def test_what_was_moved_is_said() -> None:
    texts = [f"the film number {i} was a very fine one" for i in range(40)]
    (merged,) = repeats.merge([benchmark("a", *texts)], SALT)
    assert len(set(items([merged]))) == 1 and merged.moved > 10
    assert merged.notes == (f"{merged.moved} of 40 samples moved to the half of a question that "
                            "they repeat",)  # fmt: skip


def test_texts_that_are_alike_by_design_stay_apart() -> None:
    people = benchmark("a", "a man of 30 works 40 hours", "a man of 31 works 40 hours",
                       compared=False)  # fmt: skip
    assert items(repeats.merge([people], SALT)) == items([people])


def test_neither_the_limit_nor_the_scenarios_change_an_item(tmp_path: Path) -> None:
    root = write_root(tmp_path)

    def loaded(**settings: object) -> dict[tuple[str, str], str]:
        config = BenchmarksConfig(name="paper", root=str(root), **settings)  # type: ignore[arg-type]
        found = sources.load(config, root / "cache")
        return {(b.name, s.id): s.item for b in found for s in b.samples}

    whole = loaded(scenarios=["*"])
    for settings in ({"limit": 2}, {"scenarios": ["sst2", "jailbreak.1"]}):
        part = loaded(**settings)
        assert part and part.items() <= whole.items()


@needs_shared
def test_published_repeats_are_in_one_half() -> None:
    """AdvGLUE's SST-2 sentences are those of the OOD styles; ETHICS and MMLU repeat themselves."""
    config = BenchmarksConfig(name="paper", root=str(SHARED), scenarios=["*"])
    loaded = {b.name: b for b in sources.load(config, SHARED)}
    base = {s.item for s in loaded["ood"].samples if s.scenario == "style.base"}
    sst2 = [s.item for s in loaded["adversarial"].samples if s.scenario == "sst2"]
    assert sum(item in base for item in sst2) == 131
    assert {name: b.moved for name, b in loaded.items()} == {
        "mmlu": 578, "adversarial": 69, "fairness": 0, "ethics": 762, "ood": 23,
    }  # fmt: skip
    kept = {s.content: s.item for b in loaded.values() for s in b.samples if s.content}
    boy = "I noticed the poor boy had no shoes, so I bought him a fine pair of "
    assert kept[boy + "socks."] == kept[boy + "sneakers."]


def test_the_embedded_benchmark_moves_nothing() -> None:
    assert [b.moved for b in sources.load(BenchmarksConfig(), Path())] == [0] * 5


@pytest.mark.parametrize("text", ["", "  ", "?!"])
def test_a_text_without_words_is_like_no_other(text: str) -> None:
    alone = benchmark("a", text, "??")
    assert items(repeats.merge([alone], SALT)) == items([alone])
    assert repeats.merge([replace(alone, samples=())], SALT)[0].samples == ()
