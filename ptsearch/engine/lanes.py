"""Several forwards at the same time on a CPU, each in a thread and on its share of the cores: what
is not a product, Python included, runs on all cores as well then.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import torch

from ptsearch.engine.memory import LANE, Limits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LANES = 4  # at most: Python runs one at a time

T = TypeVar("T")


def count(model: "PreTrainedModel", limits: Limits) -> int:
    """How many lanes pay, each with its share of the limits."""
    if model.device.type != "cpu":
        return 1
    return max(1, min(torch.get_num_threads(), LANES, limits.tokens // LANE))


def share(limits: Limits, lanes: int) -> Limits:
    """What one of so many lanes may hold."""
    return limits._replace(tokens=limits.tokens // lanes, rows=limits.rows // lanes)


def run(parts: Sequence[Callable[[], T]], lanes: int) -> list[T]:
    """What each part gives; a lane takes the next one when it is done."""
    if lanes < 2 or len(parts) < 2:
        return [part() for part in parts]
    cores = torch.get_num_threads()

    def one(part: Callable[[], T]) -> T:
        torch.set_num_threads(max(1, cores // lanes))  # of this thread
        return part()

    try:
        with ThreadPoolExecutor(lanes) as threads:
            return list(threads.map(one, parts))
    finally:
        torch.set_num_threads(cores)  # it is what threads to come begin with
