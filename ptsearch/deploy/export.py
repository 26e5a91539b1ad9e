"""The chosen ensemble as a folder of its own, ready to serve; `exported` reads it back."""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from ptsearch import store
from ptsearch.config import LOCAL, ExportConfig
from ptsearch.deploy import manifests, replay_log
from ptsearch.deploy.folder import FORMAT, UNSAFE, VERIFY
from ptsearch.deploy.vllm_support import Form, form_of
from ptsearch.models import base_model, loading
from ptsearch.report import certificate
from ptsearch.report.rows import COST, LAZY, knee
from ptsearch.variant import Variant, from_fields
from ptsearch.voting import VOTES

WRITTEN_WITH = ("ptsearch", "transformers", "compressed-tensors", "torch")
OTHER_DEVICE = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK)  # no hard links there


def write(study: Mapping[str, Any], config: ExportConfig, cache: Path) -> Path:
    """Write the pick of a study's front; `study` is what the study recorded of itself.

    Every member's checksums are verified first. The folder appears whole or not at all.
    """
    out, row = _free_folder(config.out), _chosen(study, config)
    members = {label: from_fields(study["variants"][label]["fields"]) for label in row["members"]}
    order = sorted(members, key=lambda label: -members[label].precision)  # stable: pool position
    sources = {label: _checked(cache, label, members[label]) for label in order}
    forms = {label: form_of(members[label], sources[label], config.target) for label in order}
    with store.new_folder(out) as part:
        for label, form in forms.items():
            own = cache / "variants" / members[label].id
            _write_member(members[label], form, (own, sources[label]), part / "members" / label)
        described = _description(study, config, row, forms, part)
        _write(part / "ensemble.yaml", yaml.safe_dump(described, sort_keys=False))
        _write(part / "certificate.json", certificate.to_json(row["certificate"]))
        if recorded := study.get("verify"):
            rows = replay_log.lines(replay_log.path_of(cache, recorded), order)
            _write(part / VERIFY, "".join(json.dumps(line) + "\n" for line in rows))
        for name, text in manifests.texts(described):
            _write(part / name, text)
        (part / "serve.sh").chmod(0o755)
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


def _chosen(study: Mapping[str, Any], config: ExportConfig) -> Mapping[str, Any]:
    """The row to export. ValueError: the study has none, or none that is served."""
    if "front" not in study:
        raise ValueError(f"study {config.study!r} has not finished; run it first")
    rule = study["settings"].get("vote.rule", "majority")
    if rule not in VOTES or not VOTES[rule].deployable:
        served = ", ".join(name for name, known in VOTES.items() if known.deployable)
        raise ValueError(f"study {config.study!r} has vote={rule}: only vote={served} is served")
    row = choose(study["front"], config.pick, study["objectives"])
    if "base" not in study or not row.get("latency"):
        raise ValueError(f"study {config.study!r} is of an older version; run it again, it resumes")
    return row


def _free_folder(out: str) -> Path:
    if not out:
        raise ValueError("export.out is missing: give export.out=DIR, a folder that does not exist")
    if Path(out).exists():
        raise ValueError(f"export.out={out} exists already; give a folder that does not")
    return Path(out)


def _checked(cache: Path, label: str, variant: Variant) -> Path:
    """The member's checkpoint, after its bytes were compared with what was built or joined."""
    folder = cache / "variants" / variant.id
    problems = store.verify_folder(folder)
    if problems:
        raise ValueError(f"member {label} is damaged: {problems[0]}")
    checkpoint, _ = loading.checkpoint_of(folder)  # a ready-made one lies elsewhere
    known = dict(variant.method_args).get("sha256")
    if variant.method == "path" and base_model.content_hash(checkpoint, cache) != known:
        raise ValueError(f"member {label} is not what the study used: {checkpoint} has changed")
    return checkpoint


def _description(
    study: Mapping[str, Any],
    config: ExportConfig,
    row: Mapping[str, Any],
    forms: Mapping[str, Form],
    folder: Path,
) -> dict[str, Any]:
    """What ensemble.yaml says; `forms` holds the members in the vote's total order."""
    base, settings = study["base"], study["settings"]
    scores = {key: value for key, value in row["search"].items() if key not in (*COST, *LAZY)}
    places = {label: folder / "members" / label for label in forms}
    sizes = {
        label: sum(path.stat().st_size for path in place.glob("*.safetensors"))
        for label, place in places.items()
    }
    return {
        "format": FORMAT,
        "study": config.study,
        "run": row["run_id"],
        "target": config.target,
        "base_model": {
            "name": settings["model.name"],
            "revision": settings["model.revision"],
            "repo": base["repo"],
            "license": manifests.license_of(base["source"], Path(base["path"])),
        },
        "vote": {
            "rule": "majority",
            "ties": "the first of the tied in this order",
            "order": list(forms),
            "ask": study["ask"][row["run_id"]],  # in this order, where asking may stop early
        },
        "members": [
            {
                "label": label,
                "variant": dict(study["variants"][label]["fields"]),
                "id": study["variants"][label]["id"],
                "folder": f"members/{label}",
                "form": "stored" if forms[label].stored else "dense bfloat16",
                "why": forms[label].why,
                "bytes": sizes[label],
                "files": {
                    path.name: store.sha256_file(path) for path in sorted(places[label].iterdir())
                },
            }
            for label in row["members"]
        ],
        "scores": {"search": scores, "holdout": row["holdout"]},
        "unskilled": list(row["unskilled"]),
        "verdict": row["certificate"]["verdict"],
        "cost": _cost(study, config.target, row, list(sizes.values())),
        "benchmarks": base["benchmarks"],
        "settings": settings,
        "written_with": {package: version(package) for package in WRITTEN_WITH},
    }


def _cost(
    study: Mapping[str, Any], target: str, row: Mapping[str, Any], sizes: Sequence[int]
) -> dict[str, Any]:
    """As searched, beside the dense model; `sizes` are the bytes of the members as written."""
    base, settings, found = study["base"], study["settings"], row["search"]
    engine = f"{settings.get('engine.name', 'transformers')} {settings['engine.dtype']}"
    apart = (sum(sizes) + len(sizes) * base["kv_bytes"]) / 1e9
    return {key: found[key] for key in (*COST, *LAZY)} | {
        "of_dense": 100 * found["memory_gb"] / base["memory_gb"],  # percent
        "dense_memory_gb": base["memory_gb"],
        "dense_bytes": int(1e9 * base["memory_gb"]) - base["kv_bytes"],
        "kv_bytes": base["kv_bytes"],  # of one member, in 16 bits
        # One process holds equal tensors once, a server for each member does not.
        "served_gb": found["memory_gb"] if target == LOCAL else apart,
        "latency": {"engine": engine, **row["latency"]},  # ms, one prompt at a time
    }


def _write_member(variant: Variant, form: Form, sources: tuple[Path, Path], out: Path) -> None:
    """The checkpoint, and what the engine must know beside it: what is rounded while it runs.

    `sources` are the variant's own folder and that of its weights, which may be the base model's.
    """
    if not form.stored:
        loading.write_dense(sources[1], "bfloat16", out)
        return
    for folder in sources:
        _copy(folder, out)
    if variant.method != "path":
        meta = {"variant": asdict(variant), "checkpoint": ".", "trust_remote_code": False}
        _write(out / loading.META, json.dumps(meta, indent=1))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _copy(source: Path, target: Path) -> None:
    """The folder's files, without what could run code; what is there already stays.

    Weights are hard links where the file system allows; the rest are copies, which can be edited.
    """
    target.mkdir(parents=True, exist_ok=True)
    known = {store.MANIFEST, loading.META, *(file.name for file in target.iterdir())}
    for file in sorted(source.iterdir()):
        if not file.is_file() or file.name in known or file.suffix in UNSAFE:
            continue
        if file.suffix == ".safetensors":
            _link(file, target / file.name)
        else:
            shutil.copy2(file, target / file.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)  # the hub's cache holds symbolic links
    except OSError as error:
        if error.errno not in OTHER_DEVICE:
            raise
        shutil.copy2(source, target)
