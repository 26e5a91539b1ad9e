"""The published sets from the Hugging Face hub, at pinned commits, laid out as `benchmarks.root`.

Files come through `huggingface_hub` and its cache (so `HF_HUB_OFFLINE=1` works once they are
there); each is checked against the hash that its cache entry is named by. The converted folder
appears whole or not at all.
"""

import csv
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ptsearch.benchmarks import adversarial, ethics, fairness, files, mmlu, ood

REVISIONS = {
    "cais/mmlu": "c30699e8356da336a370243923dbaf21066bb9fe",
    "AI-Secure/DecodingTrust": "bc9d9ac500e6595ad11bd233aa7dfa1eeba36084",
    "AI-Secure/adv_glue": "e1abda026f687e917a8d9895469194736ebe872c",
    "hendrycks/ethics": "b8b47c589f8bee77175b8648e5497278b68da48a",
}
VERSION = 1  # bump when equal files would be converted otherwise
ADV_GLUE = {
    "sst2": "adv_sst2",
    "qqp": "adv_qqp",
    "mnli": "adv_mnli",
    "mnli-mm": "adv_mnli_mismatched",
    "qnli": "adv_qnli",
    "rte": "adv_rte",
}


class Hub(NamedTuple):
    """Where files come from and are kept; None = as huggingface_hub is set up."""

    endpoint: str | None = None
    cache_dir: Path | None = None


HUB = Hub()


def fetch(benchmark: str, folder: Path, hub: Hub = HUB) -> Path:
    """A root for `benchmark` inside `folder`; downloaded and converted where it is not there yet.

    ConnectionError: the hub cannot be reached, refuses the repository, or broke off. ValueError: a
    file is not what its checksum says.
    """
    what = json.dumps([REVISIONS, VERSION], sort_keys=True)
    root = folder / f"{benchmark}-{hashlib.sha256(what.encode()).hexdigest()[:12]}"
    if root.is_dir():
        return root
    part = root.with_name(f"{root.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        CONVERT[benchmark](hub, part)
        if not root.is_dir():
            part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def get(
    hub: Hub,
    repository: str,
    name: str,
    revision: str = "",
    instead: str = "benchmarks.root=FOLDER",
) -> Path:
    """One file of a dataset repository, whole and checked.

    `revision`: a commit, "" = the pinned one; `instead`: what needs no hub.
    """
    import httpx
    from huggingface_hub import errors, hf_hub_download

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # a line for each retry otherwise
    revision = revision or REVISIONS[repository]
    where = f"{repository}/{name} at {revision[:7]}"
    try:
        path = hf_hub_download(
            repository,
            name,
            repo_type="dataset",
            revision=revision,
            endpoint=hub.endpoint,
            cache_dir=hub.cache_dir,
        )
    except errors.GatedRepoError as error:
        raise RefusedError(
            f"{where}: accept its terms on its page on the hub and set HF_TOKEN, or give {instead}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(
            f"{where} is not in the cache and the hub was not reached: "
            f"go online once, or give {instead}"
        ) from error
    except (errors.HfHubHTTPError, httpx.HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(f"could not get {where} ({reason}): run it again") from error
    check(Path(path), where)
    return Path(path)


class RefusedError(ConnectionError):
    """The repository is gated and its terms were not accepted."""


def check(path: Path, where: str) -> None:
    """Compare a file with the hash that the hub's cache keeps it under, and drop it if they differ.

    The cache links `snapshots/<commit>/<file>` to `blobs/<hash>`: SHA-256 of large files, git's
    SHA-1 of others. Where links are not supported there is nothing to compare with.
    """
    if not path.is_symlink():
        return
    expected = Path(os.readlink(path)).name
    content = path.read_bytes()
    if len(expected) == 64:
        found = hashlib.sha256(content).hexdigest()
    else:
        found = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if found != expected:
        (path.parent / os.readlink(path)).unlink()
        path.unlink()
        raise ValueError(
            f"{where}: checksum {found[:12]}... is not {expected[:12]}...; "
            "the damaged copy was removed, run it again"
        )


def _mmlu(hub: Hub, root: Path) -> None:
    for split in ("dev", "test"):
        rows: dict[str, list[list[str]]] = {subject: [] for subject in mmlu.SUBJECTS}
        for row in _parquet(get(hub, "cais/mmlu", f"all/{split}-00000-of-00001.parquet")):
            cells = [row["question"], *row["choices"], mmlu.LETTERS[row["answer"]]]
            rows[row["subject"]].append(cells)
        for subject, cells_of in rows.items():
            path = _new(root, f"mmlu/data/{split}/{subject}_{split}.csv")
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(cells_of)


def _adversarial(hub: Hub, root: Path) -> None:
    """AdvGLUE++; AdvGLUE where the repository of the former is gated."""
    repository = "AI-Secure/DecodingTrust"
    try:
        for source in adversarial.SOURCES:
            found = get(hub, repository, f"adv-glue-plus-plus/data/{source}.json")
            shutil.copyfile(found, _new(root, f"{adversarial.PLUS_PLUS}/{source}.json"))
    except RefusedError:
        shutil.rmtree(root, ignore_errors=True)
        tables = {
            task: list(
                _parquet(
                    get(hub, "AI-Secure/adv_glue", f"{name}/validation-00000-of-00001.parquet")
                )
            )
            for task, name in ADV_GLUE.items()
        }
        _write_json(root, adversarial.PLAIN, tables)


def _fairness(hub: Hub, root: Path) -> None:
    for setting in (*fairness.ZERO_SHOT, *fairness.FEW_SHOT):
        found = get(hub, "AI-Secure/DecodingTrust", f"fairness/fairness_data/{setting}.jsonl")
        shutil.copyfile(found, _new(root, f"{fairness.FOLDER}/{setting}.jsonl"))


def _ethics(hub: Hub, root: Path) -> None:
    for theirs, ours in (("test.csv", ethics.TEST), ("train.csv", ethics.TRAIN)):
        found = get(hub, "hendrycks/ethics", f"data/commonsense/{theirs}")
        shutil.copyfile(found, _new(root, f"{ethics.FOLDER}/{ours}"))


def _ood(hub: Hub, root: Path) -> None:
    """Rows with a category become lists by name: tests, and demonstrations by name and run."""
    for name, tests, demos in (
        ("style", "dev", "train_demo"),
        ("knowledge", "test", "demo"),
    ):
        path = get(hub, "AI-Secure/DecodingTrust", f"ood/{name}.jsonl")
        table: dict[str, dict[str, list[dict[str, Any]]]] = {tests: {}, demos: {}}
        for record in files.read_jsonl(files.Folder(path.parent, {}), path.name):
            category = files.field(record, "category")
            kept = table[tests if category in TESTS else demos].setdefault(category, [])
            row = dict(record.value)
            if name == "style":
                row["sentence"] = files.field(record, "question_sentence")
                row |= {"label": str(record.value.get("answer")), "id": len(kept)}
            kept.append(row)
        _write_json(root, f"{ood.FOLDER}/{name}.json", table)


TESTS = {ood.BASE, *ood.STYLES, "qa_2020", "qa_2023"}
CONVERT: Mapping[str, Callable[[Hub, Path], None]] = {
    "mmlu": _mmlu,
    "adversarial": _adversarial,
    "fairness": _fairness,
    "ethics": _ethics,
    "ood": _ood,
}


def _parquet(path: Path) -> Iterable[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def _new(root: Path, name: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_json(root: Path, name: str, value: Any) -> None:
    _new(root, name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
