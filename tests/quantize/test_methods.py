"""Methods: the records of this package, and one that another package adds."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_pool import build_tiny, pool

from ptsearch import store
from ptsearch.models import layers, loading
from ptsearch.pool import build
from ptsearch.quantize import METHODS, registry
from ptsearch.quantize.method import described

PLUGIN = '''
"""Every weight is rounded to a whole number of steps of its row's largest magnitude."""

from ptsearch.quantize import Method, rtn


def solve(group, variants):
    return [
        {name: rtn.quantize(W, v.bits, -1, True) for name, W in group.weights.items()}
        for v in variants
    ]


METHOD = Method("rows", solve, bits=(4, 6), grouped=False)
'''


def test_what_is_known_of_methods_without_torch_is_what_their_records_say() -> None:
    for name, method in METHODS.items():
        kept = {"solve": None, "solve_layer": None, "fit_inputs": None, "agree_on": ()}
        facts = replace(described()[name], storage="dense", **kept)
        assert facts == replace(method, storage="dense", **kept)
        assert described()[name].storage == method.storage


def test_a_package_adds_a_method_by_an_entry_point(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows_plugin.py").write_text(PLUGIN)
    info = tmp_path / "rows_plugin-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: rows-plugin\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ptsearch.methods]\nrows = rows_plugin:METHOD\n")
    monkeypatch.syspath_prepend(tmp_path)
    added = registry.load()
    assert added.keys() - METHODS.keys() == {"rows"}
    monkeypatch.setitem(METHODS, "rows", added["rows"])
    with pytest.raises(ValueError, match=r"rows: bits must be 4 to 6, got bits=3"):
        pool([{"method": "rows", "bits": 3}])
    variant = pool([{"method": "rows", "bits": 5}])[0]
    assert (variant.label, variant.group_size) == ("rows-5b-grow-s0", -1)
    build_tiny(tiny_model, tmp_path / "store", [variant])
    folder = build.folder_of(tmp_path / "store", variant)
    assert not store.read_meta(folder).degenerate
    model, _ = loading.load(folder, "float32")
    weight = layers.linears_of(model)["model.layers.1.mlp.up_proj"].weight[0]
    assert len(torch.unique(weight)) <= 2**5


def test_an_entry_point_must_be_a_method_with_a_name_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "bad-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    for value, message in (
        ("ptsearch.quantize.rtn:solve", r"must be a Method, got <function"),
        ("ptsearch.quantize.rtn:METHOD", "a method named rtn exists already"),
    ):
        (info / "entry_points.txt").write_text(f"[ptsearch.methods]\nbad = {value}\n")
        with pytest.raises(ValueError, match=message):
            registry.load()
