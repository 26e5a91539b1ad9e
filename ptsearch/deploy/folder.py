"""An exported ensemble's folder, checked: what serves it reads it through here. No torch.

`ensemble.yaml` describes it, `files.json` lists size and SHA-256 of every file, `members/<label>/`
hold the checkpoints, `verify.jsonl` what they answered when they were searched.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ptsearch import store
from ptsearch.deploy import query
from ptsearch.deploy.query import Query

FORMAT = "ptsearch-ensemble/1"
UNSAFE = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py")  # pickles, and code
META = "meta.json"  # of a member: what it rounds while it runs
DESCRIPTION, VERIFY = "ensemble.yaml", "verify.jsonl"


class Exported(NamedTuple):
    """A whole and unaltered folder."""

    folder: Path
    description: dict[str, Any]  # ensemble.yaml
    members: dict[str, Path]  # label -> checkpoint, in the vote's total order: the first wins ties


class Logged(NamedTuple):
    """A line of verify.jsonl: what was asked, and what was answered then; None = no answer."""

    sample: str
    query: Query
    members: dict[str, str | None]
    vote: str | None


def open_folder(folder: Path | str) -> Exported:
    """ValueError: files missing or altered, another format, or a path that leaves the folder."""
    folder = Path(folder).resolve()
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} is no exported ensemble: {DESCRIPTION} is missing")
    if (folder / store.MANIFEST).is_file():
        for name in json.loads((folder / store.MANIFEST).read_text(encoding="utf-8")):
            _inside(folder, name)
    problems = store.verify_folder(folder)
    if problems:
        raise ValueError(f"the ensemble is incomplete or altered: {problems[0]}")
    if added := _unlisted(folder):
        raise ValueError(f"the ensemble is altered: {added[0]} is not of the export")
    description = yaml.safe_load((folder / DESCRIPTION).read_text(encoding="utf-8"))
    found = description.get("format") if isinstance(description, Mapping) else None
    if found != FORMAT:
        raise ValueError(
            f"{folder / DESCRIPTION} has format {found!r}, this version reads {FORMAT}"
        )
    places = {row["label"]: _inside(folder, row["folder"]) for row in description["members"]}
    order = description["vote"]["order"]
    if sorted(order) != sorted(places):
        raise ValueError(f"{folder / DESCRIPTION}: vote.order does not name each member once")
    for place in places.values():
        _check_safe(place)
    return Exported(folder, description, {label: places[label] for label in order})


def read_verify(exported: Exported) -> list[Logged]:
    """What the members and the vote answered when they were searched; [] where none was logged."""
    path = exported.folder / VERIFY
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        Logged(row["sample"], query.from_fields(row["query"]), row["members"], row["vote"])
        for row in rows
    ]


def _unlisted(folder: Path) -> list[Path]:
    """Files among the members that the export did not write: a loader might read them."""
    listed = json.loads((folder / store.MANIFEST).read_text(encoding="utf-8"))
    found = [path for path in (folder / "members").rglob("*") if not path.is_dir()]
    return [path for path in found if path.relative_to(folder).as_posix() not in listed]


def _check_safe(member: Path) -> None:
    """ValueError for what could run code, or lead to another folder."""
    found = [file for file in member.rglob("*") if file.suffix in UNSAFE]
    meta = member / META
    if meta.is_file():
        said = json.loads(meta.read_text(encoding="utf-8"))
        variant = said.get("variant", {})
        other = variant.get("method") == "path" or variant.get("decode_schedule")
        here = said.get("checkpoint") == "." and not other
        found += [meta] if said.get("trust_remote_code") or not here else []
    if found:
        raise ValueError(
            f"{found[0]}: a member has safetensors only, no pickle, no code, no other folder's"
        )


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{folder}: the path {name!r} leaves the folder")
    return path
