"""Checkpoints from anywhere as variants of a table, told by their contents: what the cache knows of
the same files, wherever they lay, is not asked again.
"""

import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from ptsearch import store
from ptsearch.config import ModelConfig
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.models import base_model
from ptsearch.models.architecture import need_checkpoint
from ptsearch.models.base_model import BaseModel
from ptsearch.variant import Variant, from_fields

TOKENIZER = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "chat_template.jinja")


def model_of(folder: Path, cache: Path) -> ModelConfig:
    """The checkpoint as a base model, by the name under which the cache knows it."""
    digest = base_model.content_hash(folder, cache)
    names = [
        v.model for v in _recorded(cache).values() if (v.method, v.revision) == (DENSE, digest)
    ]
    return ModelConfig([*names, folder.resolve().name][0], "path", path=str(folder))


def add(table: Table, label: str, folder: Path) -> None:
    """Evaluate the checkpoint in `folder`, with its own tokenizer, as the variant `label`.

    ValueError: no checkpoint there, or one that rounds at run time and was not built here.
    """
    need_checkpoint(folder, label)
    cache = Path(table.config.cache_dir)
    known = _known(table, folder)
    if known:
        table.variants[label] = known
        table.ensure([label])
        return
    if (folder / store.META).is_file():
        built = from_fields(store.read_json(folder / store.META)["variant"])
        if built.acts_at_run_time:
            raise ValueError(f"{folder}: {built.label} rounds at run time; gate it with its cache")
    model = model_of(folder, cache)
    base = BaseModel(model.name, base_model.content_hash(folder, cache), folder.resolve())
    alone = replace(table, base=base, variants={}, entries={})
    refresh(alone)
    alone.ensure([DENSE])
    table.variants[label], table.entries[label] = alone.variant(DENSE), alone.entries[DENSE]


def refresh(table: Table) -> None:
    """Forget where the table's base model lay, if its files lie elsewhere now."""
    with suppress(FileNotFoundError, ValueError):
        if Path(table.meta(DENSE).checkpoint) != table.base.path.resolve():
            shutil.rmtree(table.folder(DENSE))
            store.intact.cache_clear()


def differing(base: Path, folder: Path) -> list[str]:
    """Which files of the tokenizer, its chat template included, the two have differently."""
    return [name for name in TOKENIZER if _digest(base / name) != _digest(folder / name)]


def _digest(path: Path) -> str:
    return store.sha256_file(path) if path.is_file() else ""


def _known(table: Table, folder: Path) -> Variant | None:
    """The variant that has these files: built here, or a ready-made one that has answered."""
    cache = Path(table.config.cache_dir)
    digest = base_model.content_hash(folder, cache)
    for place, variant in _recorded(cache).items():
        if dict(variant.method_args).get("sha256") == digest:
            known = replace(table, variants={"known": variant})
            if all(path.exists() for path in known.outputs("known").values()):
                return variant
        elif variant.method not in (DENSE, "path") and _same_files(place, folder):
            return variant
    return None


def _same_files(built: Path, folder: Path) -> bool:
    """Whether `folder` has the weights and settings that a sealed folder lists."""
    listed = store.read_json(built / store.MANIFEST)
    names = [n for n in listed if n.endswith((".safetensors", ".json")) and n != store.META]
    sizes = [(folder / name, listed[name]["size"]) for name in names]
    if not all(path.is_file() and path.stat().st_size == size for path, size in sizes):
        return False
    return all(store.sha256_file(folder / name) == listed[name]["sha256"] for name in names)


def _recorded(cache: Path) -> dict[Path, Variant]:
    """Folder -> variant, of everything that the cache has whole."""
    found = {}
    for path in sorted(cache.glob(f"variants/*/{store.META}")):
        with suppress(ValueError, FileNotFoundError):  # half written, or of another version
            found[path.parent] = store.read_meta(path.parent).variant
    return found
