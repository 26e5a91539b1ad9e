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

# What a member may consist of, in any case: no pickles, no code; no ending: a license.
SAFE = ("", ".gguf", ".jinja", ".json", ".md", ".model", ".safetensors", ".txt")
CURE = "(download or copy the whole folder again, or export the ensemble again)"
DESCRIPTION, VERIFY, SIGNATURE = "ensemble.yaml", "verify.jsonl", "model.sig"


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
    """ValueError: files missing, altered or added, another format, code or pickles, a path that
    leaves the folder, weights that are none.
    """
    try:
        return _open(Path(folder).resolve())
    except ValueError as error:
        raise ValueError(f"{error}\n{CURE}") from None


def _open(folder: Path) -> Exported:
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} is not an exported ensemble: {DESCRIPTION} is missing")
    listed = store.read_json(folder / store.MANIFEST)
    _check_complete(folder, listed)
    description = _read_description(folder / DESCRIPTION)
    for member in description.members:
        if lost := {f"{member.folder}/{name}" for name in member.files} - listed.keys():
            raise ValueError(f"the ensemble is incomplete: {folder / min(lost)} is missing")
    places = {member.label: _inside(folder, member.folder) for member in description.members}
    order = description.vote.order
    if sorted(order) != sorted(places) or len(places) != len(description.members):
        raise ValueError(f"{folder / DESCRIPTION}: vote.order must list each member once")
    for place in places.values():
        _check_safe(place)
    return Exported(folder, description, {label: places[label] for label in order})


def read_verify(exported: Exported) -> list[LoggedVote]:
    """Answers of the members and of the vote in the study; [] where none was logged.

    ValueError: a line is not one.
    """
    path, rows = exported.folder / VERIFY, list[LoggedVote]()
    for number, line in enumerate(path.read_bytes().splitlines() if path.is_file() else (), 1):
        try:
            row = json.loads(line)
            asked = query.from_fields(row["query"])
            rows.append(LoggedVote(row["sample"], asked, row["members"], row["vote"]))
        except (KeyError, RecursionError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__} {error}"
            raise ValueError(
                f"{path}, line {number}: not a logged vote ({reason})\n{CURE}"
            ) from None
    return rows


def _read_description(path: Path) -> Description:
    """ValueError: no YAML, another format, or a field is missing, unknown or of another type."""
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    written = fields.get("format") if isinstance(fields, Mapping) else None
    if written != FORMAT:
        raise ValueError(f"{path} has format {str(written)[:99]!r}, this version reads {FORMAT}")
    try:
        return Description.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {place}: {first['msg']}") from None


def _check_complete(folder: Path, listed: Mapping[str, object]) -> None:
    """ValueError unless the folder holds what the manifest lists, unaltered, and nothing else."""
    for name in listed:
        _inside(folder, name)
    if DESCRIPTION not in listed:
        raise ValueError(f"{folder / store.MANIFEST} does not list {DESCRIPTION}")
    if problems := store.verify_folder(folder):
        raise ValueError(f"the ensemble is incomplete or altered: {problems[0]}")
    if added := _unlisted(folder, listed):
        raise ValueError(f"the ensemble is altered: {added[0]} is not part of the export")


def _unlisted(folder: Path, listed: Mapping[str, object]) -> list[Path]:
    """Files and links that the manifest does not list: a loader might read them. What begins with a
    dot is what a download leaves (`.cache`), which none reads.
    """
    known = {*listed, store.MANIFEST, SIGNATURE}
    tops = [path for path in folder.iterdir() if not path.name.startswith(".")]
    found = [path for top in tops for path in (top, *top.rglob("*"))]
    files = [path for path in found if path.is_symlink() or not path.is_dir()]
    return [path for path in files if path.relative_to(folder).as_posix() not in known]


def _check_safe(member: Path) -> None:
    """ValueError: a file could run code, refers to another folder, or is cut off."""
    unsafe = [p for p in member.rglob("*") if p.is_file() and p.suffix.lower() not in SAFE]
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
            f"{unsafe[0]}: a member must consist of safetensors or GGUF, without pickles, code or "
            "references to other folders"
        )
    store.check_weights(member)


def _inside(folder: Path, name: str) -> Path:
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{folder}: the path {name!r} leaves the folder")
    return path
