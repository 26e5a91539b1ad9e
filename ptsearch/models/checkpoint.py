"""The tensors of a checkpoint on disk, read one by one, and as the dense weights they stand for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors import safe_open
from torch import Tensor

from ptsearch.models import coded, gguf_file, gguf_weights
from ptsearch.models.architecture import Names

if TYPE_CHECKING:
    from transformers import PreTrainedModel

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Tensors:
    """The tensors of a checkpoint's safetensors files, read one by one, by their model's names."""

    def __init__(self, folder: Path, names: Names | None = None) -> None:
        self.folder, self.names = folder, names or Names()
        self.file_of = {self.names.in_model(n): file for n, file in weight_map(folder).items()}

    def read(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Copies: safetensors' own tensors would keep a mapping of the whole file."""
        tensors = {}
        for file_name in {self.file_of[name] for name in names}:
            with safe_open(self.folder / file_name, "pt") as file:
                for name in names:
                    if self.file_of[name] == file_name:
                        tensors[name] = file.get_tensor(self.names.on_disk(name)).clone()
        return tensors

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix`."""
        return self.read([name for name in self.file_of if name.startswith(prefix)])


def tensors_of(model: "PreTrainedModel", folder: Path) -> Tensors:
    """The tensors of the folder by the names that they have in `model`."""
    return Tensors(folder, Names(model, weight_map(folder)))


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> the safetensors file that has it, by the folder's index or its one file."""
    is_coded = (folder / coded.INDEX).is_file()
    index = folder / (coded.INDEX if is_coded else INDEX)
    listed = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    if "weight_map" in listed:
        found: dict[str, str] = listed["weight_map"]
        return found
    name = coded.WEIGHTS if is_coded else WEIGHTS
    return dict.fromkeys(names_in(folder / name), name)


def names_in(path: Path) -> list[str]:
    """The tensors of one safetensors file."""
    with safe_open(path, "pt") as file:
        return list(file.keys())


def widths(folder: Path, suffix: str) -> set[int]:
    """Last sizes of the tensors whose names end so; reads headers only."""
    headers = _headers(folder)
    return {shape[-1] for name, (_, shape) in headers.items() if name.endswith(suffix)}


def itemsize(folder: Path) -> int:
    """Bytes of a weight in a dense checkpoint: of its largest type."""
    return max({"F64": 8, "F32": 4}.get(kind, 2) for kind, _ in _headers(folder).values())


def _headers(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Tensor -> its type and shape; reads no weights."""
    found = {}
    for file_name in sorted(set(weight_map(folder).values())):
        with safe_open(folder / file_name, "pt") as file:
            for name in names_in(folder / file_name):
                part = file.get_slice(name)
                found[name] = part.get_dtype(), part.get_shape()
    return found


def dense(folder: Path, prefix: str = "", names: Names | None = None) -> dict[str, Tensor]:
    """A checkpoint's tensors under a prefix as dense weights."""
    if (folder / gguf_file.NAME).is_file():
        return gguf_weights.dense(folder, prefix)
    stored = Tensors(folder, names)
    tensors = stored.under(prefix)
    if (folder / coded.INDEX).is_file():
        entries = coded.read_index(folder).items()
        return coded.decode(tensors, {stored.names.in_model(n): e for n, e in entries})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    quantization = config.get("quantization_config")
    if not quantization:
        return tensors
    scheme = QuantizationScheme.model_validate(quantization["config_groups"]["group_0"])
    return decompress(tensors, scheme, quantization["format"])


def is_uniform(quantization: Mapping[str, Any]) -> bool:
    """Whether a quantization config is of one grid for all linears, which `dense` knows."""
    groups = list(quantization.get("config_groups") or ())
    known = quantization.get("format") in ("pack-quantized", "int-quantized")
    return known and groups == ["group_0"]


def decompress(
    tensors: Mapping[str, Tensor], scheme: QuantizationScheme, format_name: str
) -> dict[str, Tensor]:
    """The same tensors with quantized weights dense, float32, by compressed-tensors."""
    dense, compressor = dict(tensors), BaseCompressor.get_value_from_registry(format_name)
    for name in [key.removesuffix("_scale") for key in tensors if key.endswith(".weight_scale")]:
        parts = [key for key in tensors if key.startswith(name)]
        held = {key.removeprefix(name.removesuffix("weight")): dense.pop(key) for key in parts}
        held["weight_scale"] = held["weight_scale"].float()  # else it computes in bfloat16
        dense[name] = compressor.decompress(held, scheme)["weight"]
    return dense


def needs_decoding(folder: Path) -> bool:
    """Whether transformers cannot load it as it is: GGUF, our own layout, and the experts of a
    mixture with zero points, which its conversion of experts leaves out.
    """
    if (folder / coded.INDEX).is_file() or (folder / gguf_file.NAME).is_file():
        return True
    names = Tensors(folder).file_of if list(folder.glob("*.safetensors")) else ()
    return any(".experts." in name and name.endswith(".weight_zero_point") for name in names)
