"""What an ensemble is optimised for; tables, plots, limits and MLflow iterate over these records.

To add an objective, add its record to `OBJECTIVES` and turn it on with
`+study.objectives.NAME=true`, or give it `on=True`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from ptsearch.config import StudyConfig
from ptsearch.shared import Floats

Direction = Literal["maximize", "minimize"]
Value = TypeVar("Value", float, Floats)


@dataclass(frozen=True)
class Objective:
    """A metric of the search half with the direction in which it is optimised."""

    name: str
    direction: Direction
    unit: str
    # Scores and cost -> value; elementwise, because an enumeration passes arrays of ensembles.
    # None: the score of the objective's own name.
    of_ensemble: Callable[[Mapping[str, Value]], Value] | None = None
    on: bool = True  # unless `study.objectives.NAME` says otherwise
    digits: int = 1  # after the point, for people

    @property
    def sign(self) -> float:
        """What turns values into losses."""
        return -1.0 if self.direction == "maximize" else 1.0


_RECORDS = (
    Objective("trust", "maximize", "%"),
    Objective("mmlu", "maximize", "%"),
    Objective("memory_gb", "minimize", "GB", digits=3),
    Objective("latency_ms", "minimize", "ms", digits=0),
    # Closeness to the dense model, see docs/howto/limits.md.
    Objective("flips", "minimize", "%", on=False),
    Objective("kl", "minimize", "nats", on=False, digits=4),
    Objective("margin", "maximize", "%", on=False),
)
OBJECTIVES: dict[str, Objective] = {objective.name: objective for objective in _RECORDS}


def chosen_objectives(search: StudyConfig) -> list[str]:
    """Names of the objectives that are on. ValueError: an unknown name, or none is on."""
    for name in search.objectives:
        if name not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise ValueError(f"study.objectives must be one of {known}, got {name!r}")
    names = [n for n, each in OBJECTIVES.items() if search.objectives.get(n, each.on)]
    if not names:
        raise ValueError("study.objectives: at least one must be on")
    return names


def costs() -> list[str]:
    """Names of the objectives that are minimized in every study."""
    return [name for name, each in OBJECTIVES.items() if each.direction == "minimize" and each.on]


def directions(names: Sequence[str]) -> list[Direction]:
    return [OBJECTIVES[name].direction for name in names]


def losses(values: Floats, names: Sequence[str]) -> Floats:
    """(n, objectives) values with the sign with which all are minimized."""
    return values * np.array([OBJECTIVES[name].sign for name in names])


def with_objectives(scores: dict[str, Value]) -> dict[str, Value]:
    """`scores` with the values of the objectives that are computed from several of them."""
    derived = {n: each.of_ensemble for n, each in OBJECTIVES.items() if each.of_ensemble}
    return scores | {name: value(scores) for name, value in derived.items()}
