"""Our embedded benchmarks pass the law suite, and broken ones do not."""

from dataclasses import replace

import pytest

from ptsearch.benchmarks import BENCHMARKS, BenchmarkDefinition, Sample, item_hash, pocket
from ptsearch.testing import check_benchmark


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if BENCHMARKS[name].load_pocket])
def test_a_benchmark_of_ours_keeps_the_laws(name: str) -> None:
    check_benchmark(BENCHMARKS[name])


def changed(**fields: object) -> BenchmarkDefinition:
    """The embedded MMLU with one sample changed."""
    benchmark = pocket.mmlu()
    first: Sample = replace(benchmark.samples[0], **fields)  # type: ignore[arg-type]
    altered = replace(benchmark, samples=(first, *benchmark.samples[1:]))
    return replace(BENCHMARKS["mmlu"], load_pocket=lambda: altered, load_paper=None)


@pytest.mark.parametrize(
    ("law", "fields"),
    [
        ("gold", {"gold": 9}),
        ("unique", {"id": pocket.mmlu().samples[1].id}),
        ("item_hash", {"item": "question 1"}),
        ("before perturbation", {"prompt": "What?", "item": item_hash("What?")}),
        ("unknown scenarios", {"scenario": "other"}),
        ("group", {"group": 7}),
    ],
)
def test_a_broken_benchmark_is_found(law: str, fields: dict[str, object]) -> None:
    with pytest.raises(AssertionError, match=law):
        check_benchmark(changed(**fields))
