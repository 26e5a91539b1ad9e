"""A folder from somebody else: whatever is in it, loading ends soon, in two lines that name it."""

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from members import folder  # noqa: F401 - a fixture: three members of one tiny model

from ptsearch import store
from ptsearch.deploy.ensemble import PrecisionEnsemble
from ptsearch.deploy.folder import open_folder, read_verify

LOW = "members/low"


def write(name: str, content: bytes | str) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data) and None


def change(name: str, **fields: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / name
        known = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps(known | fields))

    return edit


def header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


def index(files: object) -> Callable[[Path], None]:
    return change(f"{LOW}/model.safetensors.index.json", weight_map=files)


ALIASES = "a: &a [1]\n" + "".join(f"b{n}: &b{n} [{f'*b{n - 1}, ' * 9}]\n" for n in range(1, 20))
SEALED = {  # as if the export had written it
    "no YAML": (write("ensemble.yaml", "members: ["), "ensemble.yaml"),
    "tabs": (write("ensemble.yaml", "\t- a"), "ensemble.yaml"),
    "no text": (write("ensemble.yaml", b"\xff\xfe\x00"), "ensemble.yaml"),
    "a list": (write("ensemble.yaml", "- 1"), "ensemble.yaml"),
    "a Python object": (write("ensemble.yaml", "!!python/object/apply:os.getcwd []"), "ensemble"),
    "brackets in brackets": (write("ensemble.yaml", "[" * 20_000), "ensemble.yaml"),
    "a half surrogate": (write("ensemble.yaml", r'format: "\ud800"'), "ensemble.yaml"),
    "aliases of aliases": (write("ensemble.yaml", ALIASES.replace("b0", "a")), "ensemble.yaml"),
    "code in capitals": (write(f"{LOW}/MODELING.PY", "print(1)"), "MODELING.PY"),
    "a pickle in capitals": (write(f"{LOW}/pytorch_model.BIN", "x"), "pytorch_model.BIN"),
    "an array file": (write(f"{LOW}/weights.npz", "x"), "weights.npz"),
    "an index that leads out": (index({"a": "../outside.safetensors"}), "index.json"),
    "an index to the root": (index({"a": "/etc/passwd"}), "index.json"),
    "an index to nothing": (index({"a": "model-2.safetensors"}), "index.json"),
    "an index that is a list": (index(["model.safetensors"]), "index.json"),
    "an index of numbers": (index({"a": 1}), "index.json"),
    "codes that lie outside": (change(f"{LOW}/codes.json", weight_map={"a": "../x"}), "codes.json"),
    "a header of exabytes": (write(f"{LOW}/model.safetensors", header(2**60, b"{}")), "model.saf"),
    "a header that is no JSON": (write(f"{LOW}/model.safetensors", header(2, b"xx")), "model.saf"),
    "an empty weights file": (write(f"{LOW}/model.safetensors", b""), "model.safetensors"),
    "ten million layers": (change(f"{LOW}/config.json", num_hidden_layers=10**7), "config.json"),
    "layers in a part": (change(f"{LOW}/config.json", text={"n_layer": 10**7}), "config.json"),
    "ten million experts": (change(f"{LOW}/config.json", num_experts=10**7), "config.json"),
    "a configuration without a type": (write(f"{LOW}/config.json", "{}"), "config.json"),
    "a configuration in brackets": (write(f"{LOW}/config.json", "[" * 20_000), "config.json"),
    "a tokenizer that is none": (write(f"{LOW}/tokenizer.json", "{}"), "low"),
    "a meta.json that is a list": (write(f"{LOW}/meta.json", "[]"), "meta.json"),
    "votes that are no JSON": (write("verify.jsonl", '{"sample": '), "verify.jsonl, line 1"),
    "votes without a query": (write("verify.jsonl", '{"sample": "x"}'), "verify.jsonl, line 1"),
    "votes in brackets": (write("verify.jsonl", "[" * 20_000), "verify.jsonl, line 1"),
}


def lose_everything(folder: Path) -> None:
    shutil.rmtree(folder / "members")
    (folder / "members").mkdir()
    (folder / store.MANIFEST).write_text("{}")


ALTERED = {  # after the export
    "no files are listed": (lose_everything, "files.json"),
    "a list of nothing": (write(store.MANIFEST, "[]"), "files.json"),
    "no JSON": (write(store.MANIFEST, "{"), "files.json"),
    "a stray file": (write("notes.py", "x"), "notes.py"),
    "a stray weights file": (write(f"{LOW}/model-2.safetensors", "x"), "model-2.safetensors"),
    "a stray link": (lambda folder: (folder / LOW / "more").symlink_to("/etc"), "more"),
    "a path that leads out": (change(store.MANIFEST, **{"../x": {"size": 1}}), "'../x'"),
}


def opened(folder: Path) -> None:
    read_verify(open_folder(folder))
    PrecisionEnsemble.from_pretrained(folder)


def says(folder: Path, name: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError) as refused:
        opened(folder)
    assert time.monotonic() - started < 10
    text = str(refused.value)
    assert name in text
    assert text.count("\n") == 1
    assert text.splitlines()[1].startswith("(")  # the cure
    assert len(text) < 700


@pytest.mark.parametrize("kind", SEALED)
def test_a_folder_that_was_written_so(kind, folder, tmp_path) -> None:
    edit, name = SEALED[kind]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy)
    (copy / store.MANIFEST).unlink()
    store._seal(copy)
    says(copy, name)


@pytest.mark.parametrize("kind", ALTERED)
def test_a_folder_that_was_altered(kind, folder, tmp_path) -> None:
    edit, name = ALTERED[kind]
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    edit(copy)
    says(copy, name)


def test_what_a_download_leaves_beside_the_folder_is_no_part_of_it(folder, tmp_path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "x.metadata").write_text("")
    (copy / ".gitattributes").write_text("")
    opened(copy)
