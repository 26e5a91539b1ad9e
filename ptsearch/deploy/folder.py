"""An exported ensemble's folder, checked: what serves it reads it through here. No torch.

`ensemble.yaml` describes it, `files.json` lists size and SHA-256 of every file, `members/<label>/`
hold the checkpoints, `verify.jsonl` holds their answers to a sample of the study's prompts.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import yaml
from pydantic import ValidationError

from ptsearch import store
from ptsearch.deploy import query
from ptsearch.deploy.description import FORMAT, Description
from ptsearch.deploy.query import Query

UNSAFE = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py")  # pickles, and code
DESCRIPTION, VERIFY = "ensemble.yaml", "verify.jsonl"


class Exported(NamedTuple):
    """A complete and unaltered folder."""

    folder: Path
    description: Description
    members: dict[str, Path]  # label -> checkpoint, in the vote's total order: the first wins ties


class LoggedVote(NamedTuple):
    """A line of verify.jsonl: a query and the answers it had in the study; None = no answer."""

    sample: str
    query: Query
    members: dict[str, str | None]
    vote: str | None


def open_folder(folder: Path | str) -> Exported:
    """ValueError: files missing or altered, another format, or a path that leaves the folder."""
    folder = Path(folder).resolve()
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} is not an exported ensemble: {DESCRIPTION} is missing")
    if (folder / store.MANIFEST).is_file():
        for name in json.loads((folder / store.MANIFEST).read_text(encoding="utf-8")):
            _inside(folder, name)
    problems = store.verify_folder(folder)
    if problems:
        raise ValueError(f"the ensemble is incomplete or altered: {problems[0]}")
    if added := _unlisted(folder):
        raise ValueError(f"the ensemble is altered: {added[0]} is not part of the export")
    description = _read_description(folder / DESCRIPTION)
    places = {member.label: _inside(folder, member.folder) for member in description.members}
    order = description.vote.order
    if sorted(order) != sorted(places) or len(places) != len(description.members):
        raise ValueError(f"{folder / DESCRIPTION}: vote.order must list each member once")
    for place in places.values():
        _check_safe(place)
    return Exported(folder, description, {label: places[label] for label in order})


def read_verify(exported: Exported) -> list[LoggedVote]:
    """Answers of the members and of the vote in the study; [] where none was logged."""
    path = exported.folder / VERIFY
    if not path.is_file():
        return []
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        LoggedVote(row["sample"], query.from_fields(row["query"]), row["members"], row["vote"])
        for row in rows
    ]


def _read_description(path: Path) -> Description:
    """ValueError: another format, or a field is missing, unknown or of another type."""
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    written = fields.get("format") if isinstance(fields, Mapping) else None
    if written != FORMAT:
        raise ValueError(f"{path} has format {written!r}, this version reads {FORMAT}")
    try:
        return Description.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {place}: {first['msg']}") from None


def _unlisted(folder: Path) -> list[Path]:
    """Files below `members/` that the manifest does not list: a loader might read them."""
    listed = json.loads((folder / store.MANIFEST).read_text(encoding="utf-8"))
    found = [path for path in (folder / "members").rglob("*") if not path.is_dir()]
    return [path for path in found if path.relative_to(folder).as_posix() not in listed]


def _check_safe(member: Path) -> None:
    """ValueError: a file could run code or refers to another folder."""
    unsafe = [file for file in member.rglob("*") if file.suffix in UNSAFE]
    path = member / store.META
    if path.is_file():
        meta = store.read_json(path)
        variant = meta.get("variant", {})
        whole = isinstance(variant, dict) and not (
            variant.get("method") == "path" or variant.get("decode_schedule")
        )
        here = whole and meta.get("checkpoint") == "."
        unsafe += [path] if meta.get("trust_remote_code") or not here else []
    if unsafe:
        raise ValueError(
            f"{unsafe[0]}: a member must consist of safetensors, without pickles, code or "
            "references to other folders"
        )


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{folder}: the path {name!r} leaves the folder")
    return path
