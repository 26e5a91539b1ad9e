"""The published sets from the Hugging Face hub, at pinned commits, laid out as `benchmarks.root`.

Files come through `huggingface_hub` and its cache (so `HF_HUB_OFFLINE=1` works once they are
there); each is compared with the hash in the name of its cache entry. Where a repository has
configurations, its card maps splits to files, as for `datasets.load_dataset`. The converted folder
is written atomically; its `SOURCE.json` holds the SHA-256 of each file it was made from.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ptsearch.benchmarks import files
from ptsearch.benchmarks.definition import BenchmarkDefinition

VERSION = 3  # bump when equal files would be converted differently
SOURCE = "SOURCE.json"


class Hub(NamedTuple):
    """Where files are downloaded from and cached; None = the settings of huggingface_hub."""

    endpoint: str | None = None
    cache_dir: Path | None = None
    revisions: Mapping[str, str] = {}  # repository -> commit
    loaded: dict[str, str] | None = None  # collects the SHA-256 of each file


HUB = Hub()


def fetch(definition: BenchmarkDefinition, folder: Path, hub: Hub = HUB) -> Path:
    """A root for the benchmark inside `folder`; downloaded and converted if it does not exist yet.

    ConnectionError: the hub cannot be reached, refuses the repository, or broke off. ValueError: a
    file differs from its checksum, or the benchmark has no download.
    """
    if definition.download is None:
        raise ValueError(f"{definition.name} has no download: give benchmarks.root=FOLDER")
    identity = json.dumps([dict(definition.revisions), VERSION], sort_keys=True)
    root = folder / f"{definition.name}-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    if root.is_dir():
        return root
    part = root.with_name(f"{root.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    hub = hub._replace(loaded={}, revisions=definition.revisions)
    try:
        definition.download(hub, part)
        write_json(part, SOURCE, hub.loaded)
        if not root.is_dir():
            part.rename(root)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return root


def source(root: Path) -> dict[str, str]:
    """File of the hub, with its commit -> SHA-256, of all that a fetched root is made from."""
    hashes: dict[str, str] = json.loads((root / SOURCE).read_text(encoding="utf-8"))
    return hashes


def get(
    hub: Hub,
    repository: str,
    name: str,
    revision: str = "",
    instead: str = "benchmarks.root=FOLDER",
) -> Path:
    """One file of a dataset repository, checked.

    `revision`: a commit, "" = the pinned one; `instead`: the setting that needs no hub.
    """
    from huggingface_hub import hf_hub_download

    revision = revision or hub.revisions[repository]
    where = f"{repository}/{name} at {revision[:7]}"
    with explained(where, instead):
        path = hf_hub_download(
            repository, name, repo_type="dataset", revision=revision,
            endpoint=hub.endpoint, cache_dir=hub.cache_dir,
        )  # fmt: skip
    check(Path(path), where)
    if hub.loaded is not None:
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
        hub.loaded[f"{repository}@{revision}/{name}"] = digest
    return Path(path)


@contextmanager
def explained(what: str, instead: str) -> Iterator[None]:
    """Errors of `huggingface_hub` in the body as a ConnectionError of one line.

    RefusedError: the repository is gated. `instead`: the setting that needs no hub.
    """
    import httpx
    from huggingface_hub import constants, errors

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # else one line per retry
    try:
        yield
    except errors.GatedRepoError as error:
        raise RefusedError(
            f"{what} is gated: accept its terms on its page on the hub and set HF_TOKEN, or give "
            f"{instead}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ConnectionError(f"{what}: the repository has no such revision") from error
    except errors.RepositoryNotFoundError as error:
        raise ConnectionError(
            f"{what}: there is no such repository on the hub (or it is private: log in first)"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        offline = " (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else ""
        raise ConnectionError(
            f"{what} is not in the cache and the hub was not reached{offline}: "
            f"go online once, or give {instead}"
        ) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, httpx.HTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConnectionError(f"could not get {what} ({reason}): run it again") from error


def splits(hub: Hub, repository: str, config: str) -> dict[str, str]:
    """Split -> file of one configuration, from the card of the repository.

    Only letters and digits of a split's name count: `mnli-mm` cannot be written in a card.
    ValueError: the card lacks the configuration, or has several files for a split.
    """
    from huggingface_hub import metadata_load

    card = metadata_load(get(hub, repository, "README.md")) or {}
    files_of = {row.get("config_name"): row.get("data_files") for row in card.get("configs", [])}
    file_of = {}
    for row in files_of.get(config) or []:
        paths = [row["path"]] if isinstance(row["path"], str) else row["path"]
        if len(paths) != 1 or "*" in paths[0]:
            raise ValueError(f"{repository}: expected one file for {config}/{row['split']}")
        file_of[bare(row["split"])] = paths[0]
    if not file_of:
        raise ValueError(
            f"{repository}/README.md: no configuration {config!r}; it has "
            f"{', '.join(map(str, files_of)) or 'none'}: give benchmarks.root=FOLDER"
        )
    return file_of


def rows(hub: Hub, repository: str, known: Mapping[str, str], split: str) -> list[files.Record]:
    """The objects of one of the `splits`. ValueError: no such split, or a line is not JSON."""
    if bare(split) not in known:
        raise ValueError(f"{repository}/README.md: no split {split!r}; it has {', '.join(known)}")
    path = get(hub, repository, known[bare(split)])
    return files.read_jsonl(files.Folder(path.parent, {}), path.name)


def bare(split: str) -> str:
    return "".join(filter(str.isalnum, split))


class RefusedError(ConnectionError):
    """The repository is gated and its terms were not accepted."""


def check(path: Path, where: str) -> None:
    """Compare a file with the hash in its name in the hub's cache; remove it if they differ.

    The cache links `snapshots/<commit>/<file>` to `blobs/<hash>`: SHA-256 of large files, git's
    SHA-1 of others. Without support for links there is nothing to compare with.
    """
    if not path.is_symlink():
        return
    expected = Path(os.readlink(path)).name
    content = path.read_bytes()
    if len(expected) == 64:
        digest = hashlib.sha256(content).hexdigest()
    else:
        digest = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    if digest != expected:
        (path.parent / os.readlink(path)).unlink()
        path.unlink()
        raise ValueError(
            f"{where}: checksum {digest[:12]}... is not {expected[:12]}...; "
            "the damaged copy was removed, run it again"
        )


def parquet(hub: Hub, repository: str, name: str) -> Iterable[dict[str, Any]]:
    """The rows of a Parquet file of a repository."""
    import pyarrow.parquet as pq

    return pq.read_table(get(hub, repository, name)).to_pylist()


def new_file(root: Path, name: str) -> Path:
    """The path of a file below `root`, whose folder exists then."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_json(root: Path, name: str, value: object) -> None:
    new_file(root, name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
