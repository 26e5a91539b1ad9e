"""One variant while it is built: a safetensors file per decoder layer, and notes beside them.

Files appear whole, so a layer whose file is there is done, and an interrupted build goes on behind
it. File 0 has what is outside the layers, file i + 1 has layer i. The folder becomes the variant's
when it is committed; notes (what meta.json will say of a layer) are kept beside it.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptsearch import store
from ptsearch.models import checkpoint, coded
from ptsearch.models.architecture import Names
from ptsearch.models.base_model import BaseModel
from ptsearch.pool import writer
from ptsearch.quantize import METHODS
from ptsearch.quantize.method import Method
from ptsearch.variant import SEQUENTIAL, Variant

UNSOLVABLE = (ValueError, torch.linalg.LinAlgError)  # type: ignore[attr-defined]
NO_ROOM = "no space left on the disk; make room and run it again"
NOT_COPIED = {"config.json", store.MANIFEST, store.META}
RUNTIME = "runtime.safetensors"  # what rounds inputs, keys and values at run time


@dataclass
class LayerNotes:
    """What is remembered of one layer beside its tensors."""

    cpu_seconds: float = 0.0
    damp_raised: dict[str, float] = field(default_factory=dict)  # linear -> damping it needed
    rounded_to_nearest: list[str] = field(default_factory=list)
    entries: dict[str, coded.Entry] = field(default_factory=dict)  # linear -> how it is stored
    runtime: dict[str, Tensor] = field(default_factory=dict)


@dataclass
class VariantBuild:
    """A variant that is being built under `scratch`."""

    variant: Variant
    scratch: Path
    failure: str = ""  # why there will be no such variant
    calibration_indices: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0  # outside the layers
    gradient_cpu_seconds: float = 0.0  # of the pass for gradients, shared by a seed
    runtime: dict[str, Tensor] = field(default_factory=dict)  # outside the layers
    names: Names = field(default_factory=Names)  # of tensors on disk and in the model

    def __post_init__(self) -> None:
        self.folder.mkdir(exist_ok=True)
        self._notes.mkdir(exist_ok=True)

    @property
    def folder(self) -> Path:
        return self.scratch / self.variant.id

    @property
    def _notes(self) -> Path:
        return self.scratch / f"{self.variant.id}-notes"

    @property
    def method(self) -> Method:
        return METHODS[self.variant.method]

    @property
    def sequential(self) -> bool:
        """Whether each layer is solved behind layers that are quantized already."""
        return SEQUENTIAL in self.variant.method_args

    def file(self, number: int) -> Path:
        stem = "codes" if self.method.storage == "codes" else "model"
        return self.folder / f"{stem}-{number:05d}.safetensors"

    def write(self, number: int, tensors: Mapping[str, Tensor], notes: LayerNotes) -> None:
        """Write file `number` whole, its notes first."""
        text = json.dumps({**vars(notes), "runtime": None})
        with store.new_file(self._notes / f"{number}.safetensors") as part:
            save_file(_apart(notes.runtime), part, {"notes": text})
        with store.new_file(self.file(number)) as part:
            stored = {self.names.on_disk(name): tensor for name, tensor in tensors.items()}
            save_file(_apart(stored), part, {"format": "pt"})

    def notes(self) -> list[LayerNotes]:
        """The notes of every file that was written, in order."""
        found = []
        for path in sorted(self._notes.iterdir(), key=lambda path: int(path.stem)):
            with safe_open(path, "pt") as file:
                recorded = json.loads(file.metadata()["notes"])
            entries = {name: coded.Entry(*entry) for name, entry in recorded["entries"].items()}
            recorded |= {"entries": entries, "runtime": load_file(path)}
            found.append(LayerNotes(**recorded))
        return found

    def dense_layer(self, number: int) -> dict[str, Tensor]:
        """The tensors of a file that was written, with dense weights."""
        stored = load_file(self.file(number))
        tensors = {self.names.in_model(name): tensor for name, tensor in stored.items()}
        if self.method.storage == "codes":
            return coded.decode(tensors, self.notes()[number].entries)
        scheme, form = writer.scheme_of(self.variant), writer.format_of(self.variant)
        return checkpoint.decompress(tensors, scheme, form)

    def write_config(self, base: BaseModel, dense_linears: list[str]) -> None:
        """Everything of the checkpoint but its tensors: as in the base model, plus the format."""
        for path in base.path.iterdir():
            weights = path.suffix == ".safetensors" or path.name.endswith(".index.json")
            if path.is_file() and not weights and path.name not in NOT_COPIED:
                shutil.copyfile(path, self.folder / path.name)
        config = store.read_json(base.path / "config.json")
        files = sorted(self.folder.glob("*-*.safetensors"))
        weight_map = {key: path.name for path in files for key in checkpoint.names_in(path)}
        if self.method.storage == "codes":
            noted = [entry for notes in self.notes() for entry in notes.entries.items()]
            entries = {self.names.on_disk(name): entry for name, entry in noted}
            coded.write_index(self.folder, entries, weight_map)
        else:
            config["quantization_config"] = writer.quantization_config(self.variant, dense_linears)
            size = sum(path.stat().st_size for path in files)
            index = {"metadata": {"total_size": size}, "weight_map": weight_map}
            store.write_text(self.folder / checkpoint.INDEX, json.dumps(index, indent=1))
        text = json.dumps(config, indent=2, sort_keys=True)
        store.write_text(self.folder / "config.json", text)

    def write_runtime(self) -> None:
        """What rounds inputs, keys and values, in one file."""
        tensors = {name: t for notes in self.notes() for name, t in notes.runtime.items()}
        if tensors := tensors | self.runtime:
            save_file(tensors, self.folder / RUNTIME)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors of which no two share memory, as safetensors requires."""
    places, apart = set[int](), {}
    for name, tensor in tensors.items():
        tensor = tensor.contiguous()
        place = tensor.untyped_storage().data_ptr()
        apart[name] = tensor.clone() if place in places else tensor
        places.add(place)
    return apart


@contextmanager
def alone(build: VariantBuild) -> Iterator[None]:
    """Confine a full disk or a solver failure to this variant; what it has written is removed."""
    try:
        yield
    except (OSError, *UNSOLVABLE) as error:
        full = isinstance(error, store.FullDiskError)
        if isinstance(error, OSError):
            if error.errno not in store.FULL:
                raise
            full = True
        build.failure = NO_ROOM if full else str(error)
        shutil.rmtree(build.folder, ignore_errors=True)


@contextmanager
def scratch_folder(store_root: Path, ids: Sequence[str]) -> Iterator[Path]:
    """Where variants are built: the same folder for the same pool, or one of this process while
    another works there. It stays after an interruption only.
    """
    digest = hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()[:12]
    folder = store_root / "unfinished" / digest
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{digest}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            folder = folder.with_name(f"{digest}-{os.getpid()}")
            folder.mkdir()
        try:
            yield folder
        except Exception:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
