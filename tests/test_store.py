"""A folder appears whole or not at all."""

import errno
import json
from pathlib import Path

import pytest

from ptsearch import store


def write(folder: Path, text: str = "weights") -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "a.bin").write_text(text)
    (folder / "b.json").write_text("{}")


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "variants" / "abc"
    with store.new_folder(path) as folder:
        write(folder)
        assert not path.exists()
    assert store.is_whole(path)
    assert store.verify_folder(path) == []
    assert [p.name for p in path.parent.iterdir()] == ["abc"]


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_exception_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), store.new_folder(tmp_path / "abc") as folder:
        write(folder)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_line(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match=r"no space left in .* to write abc"),
        store.new_folder(tmp_path / "abc") as folder,
    ):
        write(folder)
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_other_os_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), store.new_folder(tmp_path / "abc"):
        raise PermissionError(errno.EACCES, "no")


def test_who_comes_second_leaves_the_first_alone(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    with store.new_folder(path) as slow:
        write(slow, "slow")
        with store.new_folder(path) as fast:
            write(fast, "fast")
    assert (path / "sub" / "a.bin").read_text() == "fast"
    assert store.verify_folder(path) == []


def test_a_broken_folder_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.mkdir()
    (path / "half.bin").write_text("half")
    assert not store.is_whole(path)
    with store.new_folder(path) as folder:
        write(folder)
    assert store.is_whole(path)
    assert not (path / "half.bin").exists()


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    with store.new_folder(path) as folder:
        write(folder)
    (path / "sub" / "a.bin").write_text("weighed")  # same size
    assert store.is_whole(path)
    assert "contents differ" in store.verify_folder(path)[0]
    (path / "sub" / "a.bin").write_text("short")
    assert not store.is_whole(path)
    assert "5 bytes, expected 7" in store.verify_folder(path)[0]
    (path / "sub" / "a.bin").unlink()
    assert not store.is_whole(path)
    assert "missing" in store.verify_folder(path)[0]
    (path / store.MANIFEST).write_text("{")
    assert not store.is_whole(path)
    assert "JSON" in store.verify_folder(path)[0]


def test_no_folder_is_not_whole(tmp_path: Path) -> None:
    assert not store.is_whole(tmp_path / "absent")
    assert store.MANIFEST in store.verify_folder(tmp_path / "absent")[0]


OLD_META = """{
 "variant": {"model": "tiny", "revision": "0", "method": "gptq", "backend": "native", "bits": 3,
  "group_size": 32, "sym": false, "actorder": "static", "damp_percent": 0.05, "act_bits": 16,
  "kv_bits": 16, "kv_window": 0, "decode_schedule": "",
  "calibration": "19c8baf246a8fb2fcd731fc39ed2162b2c9da5b85d2e345ee0184bcbca5ba968",
  "seed": 0, "rounding_seed": null, "method_args": [], "build_version": 1},
 "label": "gptq-3b-g32-asym-act-s0", "checkpoint": ".", "trust_remote_code": false,
 "tensors": {"model.embed_tokens.weight": {"bytes": 32896, "sha256": "02ea"}},
 "tensor_bytes": 66880, "read_back": "whole", "kv": {"bits": 16.0, "window": 0},
 "perplexity": 251.65, "dense_perplexity": 251.66, "degenerate": false,
 "damp_raised": {"model.layers.0.mlp.up_proj": 0.5}, "rounded_to_nearest": [],
 "seconds": 4.2, "cpu_seconds": 0.3, "gradient_cpu_seconds": 0.0,
 "calibration_indices": [216, 98, 194, 227], "versions": {"torch": "2.13.0+cpu"}
}"""  # as version 0.1.0 wrote it, without a version number


def described(folder: Path, meta: str) -> Path:
    with store.new_folder(folder) as part:
        (part / store.META).write_text(meta)
    return folder


def test_a_description_of_an_earlier_version_is_read_and_keeps_its_id(tmp_path: Path) -> None:
    meta = store.read_meta(described(tmp_path / "old", OLD_META))
    assert (meta.variant.id, meta.variant.label) == ("23fd6c4ac9c8", meta.label)
    assert meta.tensors == {"model.embed_tokens.weight": store.StoredTensor(32896, "02ea")}
    assert meta.calibration_indices == [216, 98, 194, 227]
    with store.new_folder(tmp_path / "new") as folder:
        store.write_meta(folder, meta)
    assert store.read_meta(tmp_path / "new") == meta
    recorded = json.loads((tmp_path / "new" / store.META).read_text())
    assert recorded.pop("version") == store.META_VERSION
    earlier = json.loads(OLD_META)
    del earlier["kv"]  # no target holds rounded caches in fewer bits
    assert recorded == earlier | {"types": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 9}, "has version 9, expected 1"),
        ({"perplexity": "low"}, "perplexity"),
        ({"variant": {"method": "zip"}}, "is not the description of a variant"),
        ({"tensors": {"a": {"bytes": 3}}}, "sha256"),
    ],
)
def test_a_description_that_is_wrong_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    folder = described(tmp_path / "wrong", json.dumps(json.loads(OLD_META) | change))
    with pytest.raises(ValueError, match=message):
        store.read_meta(folder)


def test_a_file_is_looked_at_before_its_first_use_in_a_process(tmp_path: Path) -> None:
    folder = described(tmp_path / "variant", OLD_META)
    (folder / store.META).write_text(OLD_META.replace("251.65", "251.75"))
    with pytest.raises(ValueError, match=r"meta.json: contents differ.*\n\(delete .*variant and"):
        store.read_meta(folder)
    (folder / store.META).write_text(OLD_META)
    assert store.intact(folder) == folder
    with pytest.raises(FileNotFoundError, match="absent is missing"):
        store.intact(tmp_path / "absent")


@pytest.mark.parametrize("manifest", ["", "{}", "[]", '{"a": 3}', '{"a": {"size": 1}}', "\ud800"])
def test_a_manifest_that_is_none_is_named(manifest: str, tmp_path: Path) -> None:
    with store.new_folder(tmp_path / "abc") as folder:
        write(folder)
    (tmp_path / "abc" / store.MANIFEST).write_bytes(manifest.encode(errors="surrogatepass"))
    assert not store.is_whole(tmp_path / "abc")
    assert store.MANIFEST in store.verify_folder(tmp_path / "abc")[0]


def test_a_record_with_another_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    store.write_record(path, {"latency_ms": 12.5, "rows": [1, 2]})
    assert store.read_record(path) == {"latency_ms": 12.5, "rows": [1, 2]}
    for written in (
        path.read_text().replace("12.5", "13.5"),
        "{}",
        '{"latency_ms": 12.5}',
        "[",
        "\0",
    ):
        path.write_text(written)
        with pytest.raises(ValueError, match=r"r\.json"):
            store.read_record(path)
