"""Prompts that are longer than a model's context lose whole demonstrations, never words."""

from collections.abc import Callable
from dataclasses import replace

from ptsearch.benchmarks import Prompt, Sample


def fit(sample: Sample, fits: Callable[[Prompt], bool], drop: bool) -> Sample:
    """The sample with as many of its demonstrations as fit, the last dropped first.

    `drop=False`, or a prompt that is too long without any, is a ValueError. How many were dropped
    is `len(before.demos) - len(after.demos)`.
    """
    shorter = sample
    while not fits(shorter.prompt):
        if not drop:
            raise ValueError(
                f"the prompt of {sample.id} is longer than the model's context; "
                "engine.too_long=drop leaves out demonstrations"
            )
        if not shorter.demos:
            raise ValueError(
                f"the prompt of {sample.id} is longer than the model's context "
                "even without demonstrations"
            )
        shorter = without_last_demo(shorter)
    return shorter


def without_last_demo(sample: Sample) -> Sample:
    """The sample with one demonstration less."""
    start, end = sample.demos[-1]
    if isinstance(sample.prompt, str):
        text = sample.prompt[:start] + sample.prompt[end:]
        return replace(sample, prompt=text, demos=sample.demos[:-1])
    turns = sample.prompt[:start] + sample.prompt[end:]
    return replace(sample, prompt=turns, demos=sample.demos[:-1])
