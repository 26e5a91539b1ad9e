"""Questions that repeat one another are one item, whatever benchmark they are in.

Otherwise a sentence that chose an ensemble would report on it too. Contents are compared as counted
words (NFKC, case folded, without punctuation): equal ones and those with a Jaccard similarity of
`SIMILAR` or more, transitively. The first of them, in the order of benchmarks and files, gives the
item of all, so that other data move none of its samples. `Sample.content` is empty where texts are
alike by design (people who differ in a number): there only equal hashes are one item.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import ceil

from ptsearch.benchmarks.definition import Benchmark
from ptsearch.benchmarks.split import half

SIMILAR = 0.75


def merge(benchmarks: Sequence[Benchmark], salt: str) -> list[Benchmark]:
    """The benchmarks with one item for questions that repeat one another; how many samples stand
    in another half than their own item's is in `moved` and in a note.
    """
    contents = {s.item: s.content for b in benchmarks for s in b.samples if s.content}
    items, bags = list(contents), [_bag(text) for text in contents.values()]
    first = list(range(len(items)))

    def root(place: int) -> int:
        while first[place] != place:
            first[place] = place = first[first[place]]
        return place

    for a, b in _similar(bags):
        low, high = sorted((root(a), root(b)))
        first[high] = low
    merged = {item: items[root(place)] for place, item in enumerate(items)}
    return [_merged(benchmark, merged, salt) for benchmark in benchmarks]


def _merged(benchmark: Benchmark, merged: dict[str, str], salt: str) -> Benchmark:
    samples = tuple(replace(s, item=merged.get(s.item, s.item)) for s in benchmark.samples)
    pairs = zip(benchmark.samples, samples, strict=True)
    moved = sum(half(old.item, salt) != half(new.item, salt) for old, new in pairs)
    note = f"{moved} of {len(samples)} samples moved to the half of a question that they repeat"
    notes = (*benchmark.notes, note) if moved else benchmark.notes
    return replace(benchmark, samples=samples, moved=moved, notes=notes)


def _bag(text: str) -> frozenset[str]:
    """The words, each with its number: "to be or not to be" has `to` and `to 2`."""
    seen = Counter[str]()
    words = []
    for word in re.findall(r"\w+", unicodedata.normalize("NFKC", text).casefold()):
        seen[word] += 1
        words.append(word if seen[word] == 1 else f"{word} {seen[word]}")
    return frozenset(words)


def _similar(bags: Sequence[frozenset[str]]) -> Iterator[tuple[int, int]]:
    """Places of pairs with |a & b| >= SIMILAR |a | b|.

    Such a pair shares one of the rarest words of each: those of which it can miss no more (prefix
    filter, Bayardo, Ma and Srikant 2007, https://doi.org/10.1145/1242572.1242591).
    """
    frequency = Counter(word for bag in bags for word in bag)
    places_of: dict[str, list[int]] = defaultdict(list)
    for place in sorted(range(len(bags)), key=lambda place: len(bags[place])):
        bag = bags[place]
        rarest = sorted(bag, key=lambda word: (frequency[word], word))
        rarest = rarest[: len(bag) - ceil(SIMILAR * len(bag)) + 1]
        for other in {other for word in rarest for other in places_of[word]}:
            shared = len(bag & bags[other])
            if shared >= SIMILAR * (len(bag) + len(bags[other]) - shared):
                yield other, place
        for word in rarest:
            places_of[word].append(place)
