"""Whether an architecture can be built and run here: from its configuration, before any work."""

from pathlib import Path

from ptsearch.models import checkpoint
from ptsearch.models.architecture import attention_sizes
from ptsearch.models.layers import layers_of, linears_of, skeleton


def check(folder: Path, trust_remote_code: bool = False) -> str | None:
    """Why the model in `folder` can be neither built nor run, in one line; None = it can.

    Reads its configuration and the names of its tensors, no weights: well under a second for a
    dense model, seconds for one of thousands of experts.
    """
    try:
        model = skeleton(folder, trust_remote_code)
        root, layers = layers_of(model)
        linears = linears_of(model)
    except ValueError as error:
        return str(error)
    kind = type(model).__name__
    if not linears:
        return f"{kind}: its decoder layers have no linear layers that could be quantized"
    if not attention_sizes(folder, trust_remote_code)["layers"]:
        return f"{kind}: no layer has attention; of state-space models only hybrids are built here"
    held = checkpoint.tensors_of(model, folder).file_of
    wanted = [f"{root}.{name}" for name, _ in layers.named_parameters()]
    if missing := [name for name in wanted if name not in held]:
        return f"{kind}: the checkpoint has no tensor {missing[0]} ({len(missing)} are missing)"
    return None
