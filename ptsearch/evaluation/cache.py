"""What the cache holds, which study uses it, whether it is as it was written, and what can go.

All of it can be made again, so deleting costs time only. A variant's files are its checkpoint, its
predictions and its latencies, whose names begin with its id.
"""

import shutil
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ptsearch import store
from ptsearch.config import CacheConfig
from ptsearch.variant import Variant

OF_VARIANTS = ("variants", "predictions", "latency")  # folders of files that belong to one
RECORDS = ("latency", "judged")  # folders of records; those of the others are sealed folders
NOT_SEALED = ("benchmarks", "unfinished")  # checked where they are read
DAY = 86400.0


class Entry(NamedTuple):
    """Files that are used, and deleted, together."""

    name: str  # a variant's id, else folder/name
    label: str  # for people
    paths: tuple[Path, ...]
    bytes: int
    changed: float  # seconds since the epoch, of the newest file
    studies: tuple[str, ...]  # that use it


def entries(cache: Path, used_by: Mapping[str, Collection[str]]) -> list[Entry]:
    """Largest first; `used_by`: study -> names of what it uses, see `names_of`."""
    grouped: dict[str, list[Path]] = {}
    for folder in sorted(path for path in cache.glob("*") if path.is_dir()):
        for path in sorted(folder.iterdir()):
            hidden = path.name.startswith(".")  # a part of what another process writes
            if not hidden and (path.is_dir() or folder.name in RECORDS):
                own = path.name.split("-")[0].removesuffix(".json")
                name = own if folder.name in OF_VARIANTS else f"{folder.name}/{path.name}"
                grouped.setdefault(name, []).append(path)
    variants = {name: _variant(cache, name) for name in grouped}
    phases = {
        name: {part.id for part in variant.phases()[1:]}
        for name, variant in variants.items()
        if variant and variant.decode_schedule
    }
    found = []
    for name, paths in grouped.items():
        files = [file for path in paths for file in _files(path)]
        users = [
            study
            for study, names in used_by.items()
            if name in names or any(name in phases.get(whole, ()) for whole in names)
        ]
        variant = variants[name]
        label = f"{variant.model} {variant.label}" if variant else name
        changed = max((file.lstat().st_mtime for file in files), default=0.0)
        size = sum(file.lstat().st_size for file in files)
        found.append(Entry(name, label, tuple(paths), size, changed, tuple(users)))
    return sorted(found, key=lambda entry: -entry.bytes)


def names_of(settings: Mapping[str, object]) -> set[str]:
    """What a study with these settings uses: ids of its variants and the dense one, base model."""
    model, revision = str(settings["model.name"]), str(settings["model.revision"])
    pool = {str(value) for key, value in settings.items() if key.startswith("pool.")}
    return pool | {Variant(model, revision).id, f"models/{model}-{revision}"}


def problems(found: Sequence[Entry]) -> Iterator[str]:
    """One line per damaged file; every byte is read."""
    for path in (path for entry in found for path in entry.paths):
        if path.parent.name in RECORDS:
            for file in _files(path):
                try:
                    store.read_record(file)
                except ValueError as error:
                    yield str(error).splitlines()[0]
        elif path.is_dir() and path.parent.name not in NOT_SEALED:
            yield from store.verify_folder(path)


def prunable(found: Sequence[Entry], policy: CacheConfig, now: float | None = None) -> list[Entry]:
    """What no kept study uses and nothing has changed for `older_than` days; downloaded benchmarks
    stay, and unfinished builds are left to the next build.
    """
    kept = policy.keep_studies
    last = (time.time() if now is None else now) - DAY * policy.older_than
    return [
        entry
        for entry in found
        if entry.changed <= last
        and entry.name.partition("/")[0] not in NOT_SEALED
        and not (set(entry.studies) if kept is None else set(entry.studies) & set(kept))
    ]


def delete(entry: Entry) -> None:
    for path in entry.paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _files(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if not file.is_dir()] if path.is_dir() else [path]


def _variant(cache: Path, name: str) -> Variant | None:
    """Which variant it is, by its description; None: it is none, or the description is damaged."""
    try:
        return store.read_meta(cache / "variants" / name).variant
    except (ValueError, OSError):
        return None
