"""The header of a GGUF file (llama.cpp): its fields, and where its tensors are, in which types."""

import struct
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ptsearch import store

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

NAME = "model.gguf"  # in a folder that is a checkpoint, beside config.json and a tokenizer
# Of a model -> llama.cpp's name, where weights are read and written here.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
SHAPE = {  # field behind the architecture's name -> key of config.json
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
}
VERSIONS = (2, 3)
SCALARS = dict(enumerate("BbHhIif?"))  # GGUF's type of a field -> struct's
SCALARS |= {10: "Q", 11: "q", 12: "d"}
TEXT, ARRAY = 8, 9
MOST = 2**20  # tensors, fields or bytes of a text that are believed


class GgufTensor(NamedTuple):
    """A tensor of a file."""

    shape: tuple[int, ...]  # as torch has it
    type: "GGMLQuantizationType"
    start: int  # in the file
    bytes: int


class GgufFile(NamedTuple):
    """What a file's header says."""

    path: Path
    fields: dict[str, Any]  # arrays of text are left out
    tensors: dict[str, GgufTensor]

    @property
    def architecture(self) -> str:
        return str(self.fields.get("general.architecture"))

    @property
    def types(self) -> dict[str, int]:
        """Type -> how many weights are stored in it."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.type.name] = counts.get(tensor.type.name, 0) + prod(tensor.shape)
        return counts

    @property
    def tensor_bytes(self) -> int:
        return sum(tensor.bytes for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.tensor_bytes / sum(self.types.values())

    @property
    def bits(self) -> int:
        """The same as a whole number that a variant may have."""
        return min(16, max(1, round(self.bits_per_weight)))

    def resident_bytes(self, context: int) -> int:
        """What llama.cpp holds while it runs the file, its buffers aside: tensors as stored, keys
        and values of `context` tokens in 16 bits.
        """
        sizes = {key.partition(".")[2]: value for key, value in self.fields.items()}
        heads = sizes["attention.head_count"]
        width = sizes["embedding_length"] // heads
        width = sizes.get("attention.key_length", width) + sizes.get(
            "attention.value_length", width
        )
        kv_heads = sizes.get("attention.head_count_kv", heads)
        return self.tensor_bytes + 2 * context * sizes["block_count"] * kv_heads * width


def check_like(base: Path, file: GgufFile, what: str) -> None:
    """ValueError: the file, which `what` gives, holds another model than the checkpoint `base`."""
    config = store.read_json(base / "config.json")
    known = ARCHITECTURES.get(config["model_type"], "none that is known here")
    found: dict[str, object] = {"architecture": file.architecture}
    expected: dict[str, object] = {"architecture": known}
    for field, key in SHAPE.items():
        found[key] = file.fields.get(f"{file.architecture}.{field}")
        expected[key] = config.get(key, found[key])
    if embeddings := file.tensors.get("token_embd.weight"):
        found["vocab_size"], expected["vocab_size"] = embeddings.shape[0], config["vocab_size"]
    for key, got in found.items():
        if got is not None and got != expected[key]:
            raise ValueError(
                f"{what}: a GGUF of another model: {key} is {got}, for the base model it is "
                f"{expected[key]}"
            )


def read(path: Path) -> GgufFile:
    """The header of a file. ValueError, in one line: why llama.cpp could not run it."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with path.open("rb") as file:
        if (magic := file.read(4)) != b"GGUF":
            raise ValueError(f"{path} is not a GGUF file (it begins with {magic!r})")
        try:
            return _read(path, file)
        except (struct.error, UnicodeDecodeError, OverflowError, KeyError):
            raise ValueError(f"{path}: cut off or damaged within its header") from None


def _read(path: Path, file: BinaryIO) -> GgufFile:
    (version,) = _take(file, "I")
    if version not in VERSIONS:
        raise ValueError(f"{path} is GGUF version {version}; versions 2 and 3 are read here")
    count, n_fields = _take(file, "QQ")
    fields = {_text(file): _value(file, *_take(file, "I")) for _ in range(_believed(n_fields))}
    entries = []
    for _ in range(_believed(count)):
        name, (rank,) = _text(file), _take(file, "I")
        entries.append((name, _take(file, f"{rank}Q")[::-1], *_take(file, "IQ")))
    align = fields.get("general.alignment", 32)
    start = -(-file.tell() // align) * align
    tensors = {name: _tensor(path, start, name, *entry) for name, *entry in entries}
    return GgufFile(path, fields, tensors)


def _tensor(
    path: Path, start: int, name: str, shape: tuple[int, ...], number: int, offset: int
) -> GgufTensor:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if number not in [int(kind) for kind in GGML_QUANT_SIZES]:
        raise ValueError(f"{path}: {name} has type {number}, newer than the installed gguf")
    kind = GGMLQuantizationType(number)
    weights, width = GGML_QUANT_SIZES[kind]
    tensor = GgufTensor(shape, kind, start + offset, prod(shape) // weights * width)
    if (end := tensor.start + tensor.bytes) > (size := path.stat().st_size):
        raise ValueError(f"{path}: cut off: {name} ends at byte {end:,}, the file at {size:,}")
    return tensor


def _take(file: BinaryIO, form: str) -> tuple[Any, ...]:
    return struct.unpack(f"<{form}", file.read(struct.calcsize(f"<{form}")))


def _text(file: BinaryIO) -> str:
    return str(file.read(_believed(*_take(file, "Q"))), "utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    """Of a field; None for an array of text."""
    if kind == TEXT:
        return _text(file)
    if kind != ARRAY:
        return _take(file, SCALARS[kind])[0]
    of, count = _take(file, "IQ")
    if of != TEXT:
        return _take(file, f"{_believed(count)}{SCALARS[of]}")
    for _ in range(count):
        file.seek(_take(file, "Q")[0], 1)
    return None


def _believed(number: int) -> int:
    if number > MOST:
        raise OverflowError
    return number
