"""Content-addressed cache: a folder appears whole or not at all, and can be checked afterwards.

`files.json` in a folder lists size and SHA-256 of every other file in it; it is written last.
"""

import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MANIFEST = "files.json"
FULL = (errno.ENOSPC, errno.EDQUOT)


class FullDiskError(ValueError):
    """There was no room for a folder."""


@contextmanager
def new_folder(path: Path, kept: Path | None = None) -> Iterator[Path]:
    """A temporary sibling of `path` that becomes `path` on success and vanishes on an exception;
    `kept` in its place is used as it is, and stays after an interruption.

    If another process has made a whole `path` meanwhile, that one stays. A full disk is a
    FullDiskError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = kept or path.with_name(f".{path.name}.part-{os.getpid()}-{secrets.token_hex(4)}")
    stays = False
    try:
        part.mkdir(exist_ok=kept is not None)
        yield part
        _seal(part)
        if path.exists() and not is_whole(path):
            shutil.rmtree(path)
        if not path.exists():
            part.rename(path)
            _sync(path.parent)
    except OSError as error:
        if error.errno in FULL:
            raise FullDiskError(
                f"no space left in {path.parent} to write {path.name}: nothing of it was kept"
            ) from error
        raise
    except (KeyboardInterrupt, SystemExit):
        stays = kept is not None
        raise
    finally:
        if not stays:
            shutil.rmtree(part, ignore_errors=True)


def is_whole(path: Path) -> bool:
    """Whether every file that the manifest lists is there with its size; contents are not read."""
    try:
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        return all((path / name).stat().st_size == file["size"] for name, file in listed.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return False


def verify_folder(path: Path) -> list[str]:
    """What is wrong with a folder, one line per file; empty = every byte is as it was written."""
    if not (path / MANIFEST).is_file():
        return [f"{path}: {MANIFEST} is missing"]
    try:
        listed = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except json.JSONDecodeError:
        return [f"{path / MANIFEST}: not readable as JSON"]
    problems = []
    for name, file in listed.items():
        member = path / name
        if not member.is_file():
            problems.append(f"{member}: missing")
        elif member.stat().st_size != file["size"]:
            problems.append(f"{member}: {member.stat().st_size} bytes, expected {file['size']}")
        elif sha256_file(member) != file["sha256"]:
            problems.append(f"{member}: contents differ from what was written")
    return problems


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(folder: Path) -> None:
    """Write the manifest and bring every file to the disk."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": sha256_file(path),
        }
        for path in files
    }
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    for path in [*files, manifest, folder]:
        _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
