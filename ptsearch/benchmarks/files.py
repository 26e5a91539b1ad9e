"""Reading data files: each is hashed, each error reports file and line.

A `Folder` is opened once per load; the readers record the SHA-256 of each file in it. If the folder
has a `MANIFEST.csv` (columns path, sha256), `verify` compares.
"""

import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

MANIFEST = "MANIFEST.csv"


class Folder(NamedTuple):
    """A folder of data files, and the hashes of those read so far."""

    root: Path
    data: dict[str, str]  # file, relative to root -> SHA-256


class Record(NamedTuple):
    """One JSON value, or the cells of a row of CSV, and its place for error messages."""

    where: str  # "path:line", or "path: key record 3" inside a JSON file
    value: object

    def items(self) -> dict[str, object]:
        """The fields of an object; of anything else none."""
        return self.value if isinstance(self.value, dict) else {}

    def cells(self) -> list[str]:
        """The cells of a row."""
        return self.value if isinstance(self.value, list) else []


def open_folder(root: Path) -> Folder:
    if not root.is_dir():
        raise FileNotFoundError(f"benchmarks.root: no folder {root}")
    return Folder(root, {})


def read_text(folder: Folder, name: str) -> str:
    """The file's text, line ends as they are; its SHA-256 is recorded."""
    path = folder.root / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    raw = path.read_bytes()
    folder.data[name] = hashlib.sha256(raw).hexdigest()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}:{line}: expected UTF-8, got byte 0x{error.object[error.start]:02x}"
        ) from error


def read_csv(folder: Folder, name: str) -> list[Record]:
    """Rows of a CSV file; carriage returns inside quotes are kept."""
    path = folder.root / name
    reader = csv.reader(io.StringIO(read_text(folder, name), newline=""), strict=True)
    rows, line = [], 1
    try:
        for row in reader:
            rows.append(Record(f"{path}:{line}", row))
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{line}: expected a row of CSV, got {error}") from error
    return rows


def read_table(folder: Folder, name: str, needed: Collection[str]) -> Iterator[Record]:
    """The rows below a CSV file's head, by column; `needed` are columns. Empty rows are none."""
    path = folder.root / name
    head, *rows = [row for row in read_csv(folder, name) if row.cells()] or [
        Record(f"{path}:1", [])
    ]
    names = head.cells()
    if not set(names) >= set(needed) or len(set(names)) < len(names):
        raise ValueError(f"{head.where}: expected different columns with {', '.join(needed)}, got "
                         f"{', '.join(names)[:200]}")  # fmt: skip
    for row in rows:
        if len(row.cells()) != len(names):
            raise ValueError(f"{row.where}: expected {len(names)} cells, got {len(row.cells())}")
        yield Record(row.where, dict(zip(names, row.cells(), strict=True)))


def read_json(folder: Folder, name: str) -> object:
    return parse_json(read_text(folder, name), folder.root / name)


def read_jsonl(folder: Folder, name: str) -> list[Record]:
    """One object per line; empty lines are none."""
    path = folder.root / name
    lines = read_text(folder, name).removesuffix("\n").split("\n")
    return [
        Record(f"{path}:{number}", parse_json(line, path, number))
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]


def parse_json(text: str, path: Path, line: int = 1) -> object:
    """`text` as JSON; `line` is its first line in the file."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{path}:{line}: expected JSON less deeply nested") from None
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path}:{line + error.lineno - 1}: expected JSON, got {error.msg} at column "
            f"{error.colno}"
        ) from error


def records(table: object, key: str, path: Path) -> Iterator[Record]:
    """The records of `table[key]`, a list inside a JSON file."""
    if not isinstance(table, dict) or not isinstance(table.get(key), list):
        raise ValueError(f"{path}: expected a list under {key!r}")
    for index, value in enumerate(table[key]):
        yield Record(f"{path}: {key} record {index}", value)


def field(record: Record, key: str) -> str:
    """A text field of an object."""
    value = record.items().get(key)
    if not isinstance(value, str):
        raise ValueError(f"{record.where}: expected text under {key!r}, got {value!r}")
    return value


def one_of(record: Record, value: object, labels: Sequence[object]) -> int:
    """The index of a label in its label space."""
    if value not in labels:
        known = ", ".join(map(str, labels))
        raise ValueError(f"{record.where}: expected a label among {known}, got {value!r}")
    return labels.index(value)


def verify(folder: Folder) -> dict[str, str]:
    """The checksums of the files read. ValueError: the folder's manifest has another one."""
    path = folder.root / MANIFEST
    if not path.is_file():
        return folder.data
    rows = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    if not {"path", "sha256"} <= set(rows.fieldnames or ()):
        raise ValueError(f"{path}:1: expected the columns path and sha256")
    known = {row["path"]: row["sha256"] for row in rows}
    for name, digest in folder.data.items():
        if known.get(name, digest) != digest:
            raise ValueError(
                f"{folder.root / name}: SHA-256 {digest[:12]}... is not the {known[name][:12]}... "
                f"of {MANIFEST}: get the file again, or update its row there"
            )
    return folder.data
