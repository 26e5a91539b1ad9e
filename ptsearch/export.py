"""The chosen ensemble as a folder of its own: `ensemble.yaml` and its members' checkpoints."""

import errno
import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ptsearch import models, store
from ptsearch.config import ExportConfig
from ptsearch.exported import FORMAT
from ptsearch.results import COST, knee
from ptsearch.variant import from_fields

WRITTEN_WITH = ("ptsearch", "transformers", "compressed-tensors", "torch")
OTHER_DEVICE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # no hard links there


def write(study: Mapping[str, Any], config: ExportConfig, cache: Path) -> Path:
    """Write the pick of a study's front; `study` is what the study recorded of itself.

    Every member's checksums are verified first. The folder appears whole or not at all.
    """
    if not config.out:
        raise ValueError("export.out is missing: give export.out=DIR, a folder that does not exist")
    out = Path(config.out)
    if out.exists():
        raise ValueError(f"export.out={out} exists already; give a folder that does not")
    if "front" not in study:
        raise ValueError(f"study {config.study!r} has not finished; run it first")
    row = choose(study["front"], config.pick, study["objectives"])
    members = {label: study["variants"][label] for label in row["members"]}
    folders = {label: cache / "variants" / member["id"] for label, member in members.items()}
    for label, folder in folders.items():
        problems = store.verify_folder(folder)
        if problems:
            raise ValueError(f"member {label} is damaged: {problems[0]}")
    with store.new_folder(out) as part:
        for label, folder in folders.items():
            checkpoint, _ = models.checkpoint_of(folder)  # a ready-made one lies elsewhere
            _copy(checkpoint, part / "members" / label)
        text = yaml.safe_dump(_description(study, config, row, part), sort_keys=False)
        (part / "ensemble.yaml").write_text(text, encoding="utf-8")
    return out


def choose(
    front: Sequence[Mapping[str, Any]], pick: str, objectives: Sequence[str]
) -> Mapping[str, Any]:
    """The row of the front that `pick` names: knee, best_trust, or the start of a run id."""
    if pick == "knee":
        return front[knee([row["search"] for row in front], objectives)]
    if pick == "best_trust":
        return max(front, key=lambda row: float(row["search"]["trust"]))
    named = [row for row in front if row["run_id"].startswith(pick)]
    if len(named) != 1:
        runs = ", ".join(row["run_id"][:8] for row in front)
        raise ValueError(
            f"export.pick must be knee, best_trust or a run of the front ({runs}), got {pick!r}"
        )
    return named[0]


def _description(
    study: Mapping[str, Any], config: ExportConfig, row: Mapping[str, Any], folder: Path
) -> dict[str, Any]:
    members = {label: study["variants"][label] for label in row["members"]}
    precision = {
        label: from_fields(member["fields"]).precision for label, member in members.items()
    }
    order = sorted(members, key=lambda label: -precision[label])  # stable: pool position
    scores = {key: value for key, value in row["search"].items() if key not in COST}
    return {
        "format": FORMAT,
        "study": config.study,
        "run": row["run_id"],
        "base_model": {
            "name": study["settings"]["model.name"],
            "revision": study["settings"]["model.revision"],
        },
        "vote": {"rule": "majority", "ties": "the first of the tied in this order", "order": order},
        "members": [
            {
                "label": label,
                "variant": dict(member["fields"]),
                "id": member["id"],
                "folder": f"members/{label}",
                "files": {
                    path.name: store.sha256_file(path)
                    for path in sorted((folder / "members" / label).iterdir())
                },
            }
            for label, member in members.items()
        ],
        "scores": {"search": scores, "holdout": row["holdout"]},
        "unskilled": list(row["unskilled"]),
        "cost": {key: row["search"][key] for key in COST},
        "settings": study["settings"],
        "written_with": {package: version(package) for package in WRITTEN_WITH},
    }


def _copy(source: Path, target: Path) -> None:
    """The checkpoint's files as hard links where the file system allows, else as copies."""
    target.mkdir(parents=True)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.name not in (store.MANIFEST, "meta.json"):
            try:
                os.link(file, target / file.name)
            except OSError as error:
                if error.errno not in OTHER_DEVICE:
                    raise
                shutil.copy2(file, target / file.name)
