"""Whether an architecture can be built and run here: from its configuration, before any work."""

from pathlib import Path
from typing import TYPE_CHECKING

from ptsearch.models import checkpoint
from ptsearch.models.architecture import attention_sizes
from ptsearch.models.layers import layers_of, linears_of, skeleton

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def checked(folder: Path, trust_remote_code: bool = False) -> "PreTrainedModel":
    """The skeleton of a model. ValueError: why it can be neither built nor run, in one line.

    Reads its configuration and the names of its tensors, no weights: well under a second for a
    dense model, seconds for one of thousands of experts.
    """
    model = skeleton(folder, trust_remote_code)
    (root, layers), kind = layers_of(model), type(model).__name__
    if not linears_of(model):
        raise ValueError(
            f"{kind}: its decoder layers have no linear layers that could be quantized"
        )
    if not attention_sizes(folder, trust_remote_code)["layers"]:
        raise ValueError(
            f"{kind}: no layer has attention; of state-space models only hybrids are built here"
        )
    held = checkpoint.tensors_of(model, folder).file_of
    wanted = [f"{root}.{name}" for name, _ in layers.named_parameters()]
    if missing := [name for name in wanted if name not in held]:
        raise ValueError(
            f"{kind}: the checkpoint has no tensor {missing[0]} ({len(missing)} are missing)"
        )
    return model
