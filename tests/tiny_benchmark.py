"""A benchmark with demonstrations."""

from ptsearch.benchmarks import Benchmark, Sample, Scenario, chat
from ptsearch.benchmarks.parsing import Question

DEMO = ("x" * 400, "yes")  # bytes are tokens here


def benchmark(demos: int, mode: str = "generate") -> Benchmark:
    scenario = Scenario("few", "few", mode=mode, max_new_tokens=8)
    sample = Sample(
        "few/0",
        "item",
        "few",
        chat.few_shot("Answer.", [DEMO] * demos, "y" * 100),
        Question(("no", "yes")),
        gold=0,
        demos=chat.demo_turns(demos),
    )
    return Benchmark("ood", "file", 1, {"few": scenario}, (sample,), {})
