"""Type aliases that the wings share."""

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

AnswerCodes = NDArray[np.int16]  # (..., samples): a label's index, or why there is none (< 0)
Floats = NDArray[np.float64]
Json: TypeAlias = "str | int | float | bool | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"  # JSON of no fixed form, such as a model's config
Report = Callable[[str, int, int], None]  # what is under way, how many are done, of how many
