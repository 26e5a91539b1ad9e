"""Content-addressed cache: a file or folder appears whole or not at all, and is checked when read.

`files.json` in a folder lists size and SHA-256 of every other file in it; it is written last.
`meta.json` in a variant's folder describes it: `VariantMeta`. A record is a JSON file by itself
that holds its own SHA-256.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ptsearch.variant import Variant, from_fields

MANIFEST = "files.json"
META = "meta.json"  # in a variant's folder, beside its checkpoint or in place of one
META_VERSION = 1  # bump when a field's meaning changes; files without a version are of version 1
WAIT_SECONDS = 2.0  # between signs of life while another process holds a lease
FULL = (errno.ENOSPC, errno.EDQUOT)
_CURE = "(delete %s and run the command again: what is missing is made anew)"


class FullDiskError(ValueError):
    """There was no room for a folder."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint; equal contents have equal digests, and are stored once."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class VariantMeta:
    """What a variant's folder holds and how it was built; an export keeps the first four fields."""

    variant: Variant
    label: str = ""
    checkpoint: str = "."  # folder of its weights, relative to its own
    trust_remote_code: bool = False
    tensors: dict[str, StoredTensor] = field(default_factory=dict)
    tensor_bytes: int = 0
    types: dict[str, int] = field(default_factory=dict)  # of a GGUF: type -> weights in it
    read_back: str = "whole"  # how it was checked: whole | layer by layer
    perplexity: float | None = None  # None: not finite
    dense_perplexity: float | None = None
    degenerate: bool = False  # it may not vote
    damp_raised: dict[str, float] = field(default_factory=dict)  # linear -> damping it needed
    rounded_to_nearest: list[str] = field(default_factory=list)  # calibration hardly reached these
    seconds: float = 0.0  # wall time of the whole pool
    cpu_seconds: float = 0.0  # of this variant alone
    gradient_cpu_seconds: float = 0.0  # of the pass for gradients, shared by a seed
    calibration_indices: list[int] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)  # package -> version
    version: int = META_VERSION


def read_meta(folder: Path) -> VariantMeta:
    """The checked meta.json of a variant's folder; of an old one, fields it lacks are defaults.

    FileNotFoundError. ValueError: not as it was written, another version, or a field is wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    path = intact(folder / META)
    recorded = read_json(path)
    if (version := recorded.get("version", 1)) != META_VERSION:
        raise ValueError(f"{path} has version {version}, expected {META_VERSION}: build it again")
    try:
        variant = from_fields(recorded["variant"])
        meta = TypeAdapter(VariantMeta).validate_python({**recorded, "variant": variant})
    except (KeyError, TypeError, ValidationError) as error:
        reason = str(error).replace("\n", " ")
        raise ValueError(f"{path} is not the description of a variant: {reason}") from None
    return meta


def write_meta(folder: Path, meta: VariantMeta) -> None:
    write_text(folder / META, json.dumps(asdict(meta), indent=1))


def read_json(path: Path) -> dict[str, Any]:
    """An object. FileNotFoundError. ValueError: not JSON, or something else than an object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {error.lineno}: not JSON ({error.msg})") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object")
    return value


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote. FileNotFoundError. ValueError: the file is another one."""
    record = read_json(path)
    if (written := record.pop("sha256", None)) != _digest(record):
        why = "contents differ from what was written" if written else "it has no checksum"
        raise ValueError(f"{path}: {why}\n{_CURE % path}")
    return record


def write_record(path: Path, record: Mapping[str, object]) -> None:
    write_text(path, json.dumps({**record, "sha256": _digest(record)}))


def _digest(record: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all; its folder is created."""
    with new_file(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` that replaces `path` on success and vanishes otherwise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def lease(folder: Path, name: str, waiting: Callable[[], None]) -> Iterator[None]:
    """Files of `folder` whose names begin with `name` are written by one process at a time, which
    holds this until its end at the latest; what a killed one has left is removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{name}.lock")
    wait_for(lock, waiting)
    try:
        remove_parts(folder, name)
        yield
    finally:
        lock.release()


def wait_for(lock: FileLock, waiting: Callable[[], None]) -> None:
    """Until its holder lets go or dies; `waiting` is called every few seconds."""
    while True:
        try:
            lock.acquire(timeout=WAIT_SECONDS)
            return
        except Timeout:
            waiting()


def remove_parts(folder: Path, name: str = "") -> None:
    """Remove what killed processes have left of new files; nobody may be writing there."""
    for part in folder.glob(f".{name}*.part-*"):
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """A name beside `path` for what becomes it when it is whole; see `remove_parts`."""
    return path.with_name(f".{path.name}.part-{os.getpid()}-{secrets.token_hex(4)}")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary sibling of `path` that becomes `path` on success and vanishes otherwise.

    FullDiskError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        part.mkdir()
        yield part
        commit(part, path)
    except OSError as error:
        if error.errno in FULL:
            raise FullDiskError(
                f"no space left in {path.parent} to write {path.name}: nothing of it was kept"
            ) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)


def commit(part: Path, path: Path) -> None:
    """Seal the folder `part` and rename it to `path`.

    If another process has written a whole `path` meanwhile, that one stays, and so does `part`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _seal(part)
    if path.exists() and not is_whole(path):
        shutil.rmtree(path)
    if not path.exists():
        part.rename(path)
        _sync(path.parent)


def is_whole(path: Path) -> bool:
    """Whether every file that the manifest lists is there with its size; contents are not read."""
    try:
        listed = _listed(path)
        return all((path / name).stat().st_size == size for name, (size, _) in listed.items())
    except (ValueError, FileNotFoundError, NotADirectoryError):
        return False


@cache
def intact(path: Path) -> Path:
    """`path`, a sealed folder or a file in one, if it is as it was written; a process looks once.

    FileNotFoundError. ValueError: which file is not, and the cure.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing")
    folder, names = (path, None) if path.is_dir() else (path.parent, [path.name])
    if problems := verify_folder(folder, names):
        raise ValueError(f"{problems[0]}\n{_CURE % folder}")
    return path


def verify_folder(path: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with a sealed folder, or with `names` in it, one line per file; empty = every
    byte is as it was written.
    """
    try:
        listed = _listed(path)
    except ValueError as error:
        return [str(error)]
    found = (_problem(path / name, *listed.get(name, (0, ""))) for name in names or listed)
    return [problem for problem in found if problem]


def _problem(file: Path, size: int, sha256: str) -> str:
    """What is wrong with a file, "" = nothing; `sha256` is "" for one that is not listed."""
    if not file.is_file() or not sha256:
        return f"{file}: missing" if sha256 else f"{file}: not listed in {MANIFEST}"
    if (found := file.stat().st_size) != size:
        return f"{file}: {found} bytes, expected {size}"
    return "" if sha256_file(file) == sha256 else f"{file}: contents differ from what was written"


def _listed(folder: Path) -> dict[str, tuple[int, str]]:
    """File -> (size, SHA-256) of the manifest. ValueError: there is none, or it is no manifest."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        listed = {name: (file["size"], file["sha256"]) for name, file in read_json(path).items()}
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a list of files ({error})") from None
    if not listed:
        raise ValueError(f"{path}: lists no files")
    return listed


def check_weights(folder: Path) -> None:
    """ValueError: a safetensors file is none, or an index leads out of the folder or to nothing."""
    from safetensors import SafetensorError, safe_open

    for path in [*folder.glob("*.safetensors.index.json"), *folder.glob("codes.json")]:
        names = read_json(path).get("weight_map", {} if path.name == "codes.json" else None)
        for name in set(map(str, names.values())) if isinstance(names, dict) else {str(names)}:
            if name != Path(name).name or not (folder / name).is_file():
                raise ValueError(f"{path}: weight_map names {name[:99]!r}, no file beside it")
    for path in folder.glob("*.safetensors"):
        try:
            with safe_open(path, "numpy"):
                pass
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{path} is not a safetensors file ({error})") from None


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Write the manifest and bring every file to the disk."""
    manifest = folder / MANIFEST
    manifest.unlink(missing_ok=True)  # of one that was killed between here and its renaming
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in files
    }
    manifest.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in [*files, manifest, folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
