"""One variant while it is built: a safetensors file per decoder layer, and notes beside them.

Files appear whole, so a layer whose file is there is done, and an interrupted build goes on behind
it, whatever else is built with it. File 0 has what is outside the layers, file i + 1 has layer i.
The folder becomes the variant's when it is committed; notes (what meta.json will say of a layer)
are kept beside it. Whoever writes holds the variant's lease, which ends with its process.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from filelock import FileLock, Timeout
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
ABANDONED_SECONDS = 7 * 24 * 3600  # without a new file, before an interrupted build is removed


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
    """A variant that is being built under `scratch`, by the process that holds `lease`."""

    variant: Variant
    scratch: Path
    lease: FileLock
    failure: str = ""  # why there will be no such variant
    calibration_indices: list[int] = field(default_factory=list)
    cpu_seconds: float = 0.0  # outside the layers
    gradient_cpu_seconds: float = 0.0  # of the pass for gradients, shared by a seed
    runtime: dict[str, Tensor] = field(default_factory=dict)  # outside the layers
    names: Names = field(default_factory=Names)  # of tensors on disk and in the model

    def __post_init__(self) -> None:
        for folder in (self.folder, self._notes):
            folder.mkdir(parents=True, exist_ok=True)
            store.remove_parts(folder)

    @property
    def folder(self) -> Path:
        return self.scratch / "checkpoint"

    @property
    def _notes(self) -> Path:
        return self.scratch / "notes"

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
        elif self.method.storage == "uniform":
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
def leased(
    store_root: Path, variants: Sequence[Variant], waiting: Callable[[], None]
) -> Iterator[list[VariantBuild]]:
    """The variants that no other process builds; if it builds all of them, it is waited for.

    What they have written stays after an interruption, but not if what was asked is wrong.
    """
    root, leases = store_root / "unfinished", dict[Variant, FileLock]()
    root.mkdir(parents=True, exist_ok=True)
    for variant in variants:
        leases[variant] = FileLock(root / f"{variant.id}.lock")
    try:
        taken = [variant for variant in variants if _is_free(leases[variant])]
        if not taken:
            waiting()
            store.wait_for(leases[variants[0]], waiting)
            taken = [v for v in variants if leases[v].is_locked or _is_free(leases[v])]
        missing = [v for v in taken if not store.is_whole(store_root / "variants" / v.id)]
        builds = [VariantBuild(v, root / v.id, leases[v]) for v in missing]
        try:
            yield builds
        except ValueError:
            _remove(builds)
            raise
        _remove(build for build in builds if build.failure)
    finally:
        for lease in leases.values():
            lease.release()


def finish(build: VariantBuild, place: Path) -> None:
    """The variant's folder becomes `place`, and its lease ends."""
    store.commit(build.folder, place)
    _remove([build])
    build.lease.release()


def sweep(store_root: Path) -> None:
    """Remove what interrupted builds have left of variants that are whole or abandoned."""
    for scratch in (store_root / "unfinished").glob("*/"):
        lease = FileLock(f"{scratch}.lock")
        if not _is_free(lease):
            continue
        checkpoint = scratch / "checkpoint"
        if (
            not checkpoint.is_dir()
            or time.time() - checkpoint.stat().st_mtime > ABANDONED_SECONDS
            or store.is_whole(store_root / "variants" / scratch.name)
        ):
            shutil.rmtree(scratch, ignore_errors=True)
        lease.release()


def _remove(builds: Iterable[VariantBuild]) -> None:
    """Remove what was written of builds whose lease is still ours."""
    for build in builds:
        if build.lease.is_locked:
            shutil.rmtree(build.scratch, ignore_errors=True)


def _is_free(lease: FileLock) -> bool:
    """Whether nobody held it; now it is held by us."""
    try:
        lease.acquire(blocking=False)
    except Timeout:
        return False
    return True
