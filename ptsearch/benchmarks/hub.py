"""The published sets from the Hugging Face hub, at pinned commits, laid out as `benchmarks.root`.

Files come through `huggingface_hub` and its cache (so `HF_HUB_OFFLINE=1` works once they are
there); each is checked against the hash that its cache entry is named by. Where a repository has
configurations, its card says which file a split is, as for `datasets.load_dataset`. The converted
folder appears whole or not at all; `SOURCE.json` in it holds the SHA-256 of each file it is from.
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
VERSION = 2  # bump when equal files would be converted otherwise
TRUST = "AI-Secure/DecodingTrust"
SOURCE = "SOURCE.json"
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
    loaded: dict[str, str] | None = None  # where to note the SHA-256 of each file


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
    hub = hub._replace(loaded={})
    try:
        CONVERT[benchmark](hub, part)
        _write_json(part, SOURCE, hub.loaded)
        if not root.is_dir():
            part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def source(root: Path) -> dict[str, str]:
    """File of the hub, with its commit -> SHA-256, of what a fetched root was made of."""
    found: dict[str, str] = json.loads((root / SOURCE).read_text(encoding="utf-8"))
    return found


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
    if hub.loaded is not None:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        hub.loaded[f"{repository}@{revision}/{name}"] = digest
    return Path(path)


def splits(hub: Hub, repository: str, config: str) -> dict[str, str]:
    """Split -> file of one configuration, as the card of the repository has them.

    Letters and digits of a split's name count alone: `mnli-mm` cannot be written in a card.
    ValueError: the card has no such configuration, or not one file for each split.
    """
    from huggingface_hub import metadata_load

    card = metadata_load(get(hub, repository, "README.md")) or {}
    files_of = {row.get("config_name"): row.get("data_files") for row in card.get("configs", [])}
    found = {}
    for row in files_of.get(config) or []:
        paths = [row["path"]] if isinstance(row["path"], str) else row["path"]
        if len(paths) != 1 or "*" in paths[0]:
            raise ValueError(f"{repository}: expected one file for {config}/{row['split']}")
        found[_bare(row["split"])] = paths[0]
    if not found:
        raise ValueError(
            f"{repository}/README.md: no configuration {config!r}; it has "
            f"{', '.join(map(str, files_of)) or 'none'}: give benchmarks.root=FOLDER"
        )
    return found


def rows(hub: Hub, repository: str, config: str, split: str) -> list[files.Record]:
    """The objects of one split. ValueError: there is no such split, or a line is not JSON."""
    known = splits(hub, repository, config)
    if _bare(split) not in known:
        raise ValueError(
            f"{repository}/README.md: no split {split!r} in {config!r}; it has {', '.join(known)}"
        )
    path = get(hub, repository, known[_bare(split)])
    return files.read_jsonl(files.Folder(path.parent, {}), path.name)


def _bare(split: str) -> str:
    return "".join(filter(str.isalnum, split))


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
    """AdvGLUE++: a split for each task, its rows of all source models; AdvGLUE where the repository
    of the former is gated.
    """
    config = "adv-glue-plus-plus"
    tables: dict[str, dict[str, list[Any]]] = {source: {} for source in adversarial.SOURCES}
    try:
        known = splits(hub, TRUST, config)
        for task in adversarial.TASKS:
            if task not in adversarial.SCORED and _bare(task) not in known:
                continue
            for record in rows(hub, TRUST, config, task):
                model = tables[adversarial.SOURCES[_source_model(record)]]
                row = {key: value for key, value in record.value.items() if value is not None}
                model.setdefault(task, []).append(row)
    except RefusedError:
        found = {
            task: get(hub, "AI-Secure/adv_glue", f"{name}/validation-00000-of-00001.parquet")
            for task, name in ADV_GLUE.items()
        }
        plain = {task: list(_parquet(path)) for task, path in found.items()}
        _write_json(root, adversarial.PLAIN, plain)
        return
    for source_model, table in tables.items():
        _write_json(root, f"{adversarial.PLUS_PLUS}/{source_model}.json", table)


def _source_model(record: files.Record) -> int:
    return files.one_of(record, files.field(record, "model"), adversarial.SOURCES)


def _fairness(hub: Hub, root: Path) -> None:
    for setting in (*fairness.ZERO_SHOT, *fairness.FEW_SHOT):
        found = get(hub, TRUST, f"fairness/fairness_data/{setting}.jsonl")
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
        table: dict[str, dict[str, list[dict[str, Any]]]] = {tests: {}, demos: {}}
        for record in rows(hub, TRUST, "ood", name):
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
