"""The cache: what it holds, which study uses it, what is damaged, what can go."""

import os
import time
from pathlib import Path

import pytest

from ptsearch import store
from ptsearch.config import CacheConfig
from ptsearch.evaluation import cache
from ptsearch.variant import Variant

BASE = {"model": "tiny", "revision": "r1"}
FOUR, THREE = Variant(**BASE, method="rtn", bits=4), Variant(**BASE, method="rtn", bits=3)
PHASED = Variant(**BASE, method="gptq", bits=4, decode_schedule="8:3")
SETTINGS = {"model.name": "tiny", "model.revision": "r1"}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """Two variants with answers and latencies, one with two phases, a base model, a verdict."""
    for variant in (FOUR, THREE, PHASED, *PHASED.phases()[1:]):
        with store.new_folder(tmp_path / "variants" / variant.id) as folder:
            (folder / "model.safetensors").write_bytes(b"w" * variant.bits * 1000)
            store.write_meta(folder, store.VariantMeta(variant))
        with store.new_folder(tmp_path / "predictions" / f"{variant.id}-ood-ab12") as folder:
            (folder / "answers.parquet").write_bytes(b"p" * 100)
        store.write_record(tmp_path / "latency" / f"{variant.id}-cd34.json", {"latency_ms": 1.0})
    with store.new_folder(tmp_path / "models" / "tiny-r1") as folder:
        (folder / "model.safetensors").write_bytes(b"w" * 9000)
    store.write_record(tmp_path / "judged" / "ab" / "abcd.json", {"verdict": "yes"})
    store.write_record(tmp_path / "models" / "hashes.json", {"file": "hash"})
    (tmp_path / "variants" / ".abc.part-1-ff").mkdir()  # another process is at work
    return tmp_path


def used(*variants: Variant) -> set[str]:
    pool = {f"pool.{variant.label}": variant.id for variant in variants}
    return cache.names_of(SETTINGS | pool)


def test_a_variants_files_are_one_entry_with_the_studies_that_use_it(filled: Path) -> None:
    found = {e.name: e for e in cache.entries(filled, {"a": used(FOUR), "b": used(FOUR, PHASED)})}
    assert {p.parent.name for p in found[FOUR.id].paths} == set(cache.OF_VARIANTS)
    assert found[FOUR.id].label == f"tiny {FOUR.label}"
    assert found[FOUR.id].bytes > 4100
    users = {name: entry.studies for name, entry in found.items()}
    phases = {part.id: ("b",) for part in PHASED.phases()[1:]}
    assert users == phases | {
        FOUR.id: ("a", "b"), THREE.id: (), PHASED.id: ("b",), "models/tiny-r1": ("a", "b"),
        "judged/ab": (),
    }  # fmt: skip


def test_every_damaged_file_is_named(filled: Path) -> None:
    assert list(cache.problems(cache.entries(filled, {}))) == []
    changes = {
        filled / "variants" / FOUR.id / "model.safetensors": (b"w", b"v"),
        filled / "predictions" / f"{THREE.id}-ood-ab12" / "answers.parquet": (b"p", b"q"),
        filled / "latency" / f"{FOUR.id}-cd34.json": (b"1.0", b"1.5"),
        filled / "judged" / "ab" / "abcd.json": (b"yes", b"no"),
        filled / "models" / "tiny-r1" / store.MANIFEST: (b"9000", b"9001"),
    }
    for path, change in changes.items():
        path.write_bytes(path.read_bytes().replace(*change, 1))
    (filled / "predictions" / f"{FOUR.id}-ood-ab12" / store.MANIFEST).write_text("{}")
    found = list(cache.problems(cache.entries(filled, {})))
    assert len(found) == 6
    assert "files.json: lists no files" in "\n".join(found)
    assert [path.name for path in [*changes][:-1] if str(path) not in "\n".join(found)] == []


def test_what_kept_studies_use_and_what_is_new_stays(filled: Path) -> None:
    for kept in ("unfinished/abc", "benchmarks/mmlu-1"):
        (filled / kept).mkdir(parents=True)
        (filled / kept / "file").write_text("held")
    studies = {"a": used(FOUR), "b": used(PHASED)}
    now = time.time() + 1

    def gone(**policy: object) -> set[str]:
        entries = cache.entries(filled, studies)
        return {e.name for e in cache.prunable(entries, CacheConfig("prune", **policy), now)}

    unused = {THREE.id, "judged/ab"}
    of_b = {PHASED.id, *(part.id for part in PHASED.phases()[1:])}
    assert gone() == unused
    assert gone(keep_studies=["a"]) == unused | of_b
    assert gone(keep_studies=[]) == unused | of_b | {FOUR.id, "models/tiny-r1"}
    assert gone(older_than=1) == set()
    for file in (filled / "variants" / THREE.id).iterdir():
        os.utime(file, (now - 3 * 86400,) * 2)
    assert gone(older_than=2) == set()  # its answers are of today


def test_deleting_frees_all_of_an_entry_and_nothing_else(filled: Path) -> None:
    entries = cache.entries(filled, {})
    [three] = [entry for entry in entries if entry.name == THREE.id]
    cache.delete(three)
    after = cache.entries(filled, {})
    assert [e for e in entries if e.name != THREE.id] == after
    assert not [p for p in filled.rglob("*") if THREE.id in p.name]
