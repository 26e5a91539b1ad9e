"""A pool from a base model on disk: what is built, what it equals, what stops it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny_model
from tiny_pool import CALIBRATION, ROWS, build_tiny, pool, silent

from ptsearch import store
from ptsearch.engine import memory
from ptsearch.models import base_model, layers, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.checkpoint import Tensors
from ptsearch.pool import build, layerwise, one_pass
from ptsearch.pool import calibration as calibrations
from ptsearch.pool.calibration import Calibration
from ptsearch.quantize import rtn
from ptsearch.variant import Variant


@pytest.fixture(scope="module")
def built(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    build_tiny(tiny_model, root, pool(ROWS))
    return root


def test_every_variant_is_whole_and_described(built: Path, tiny_model: Path) -> None:
    for variant in [Variant("tiny", "0"), *pool(ROWS)]:
        folder = build.folder_of(built, variant)
        assert store.verify_folder(folder) == []
        meta = store.read_json(folder / store.META)
        assert meta["label"] == variant.label
        assert meta["perplexity"] > 1
        assert not meta["degenerate"]
        assert meta["tensor_bytes"] == sum(t["bytes"] for t in meta["tensors"].values())
        expected = CALIBRATION.samples if variant.calibration else 0
        assert len(meta["calibration_indices"]) == expected
    assert loading.checkpoint_of(folder)[0] == folder
    dense = build.folder_of(built, Variant("tiny", "0"))
    assert loading.checkpoint_of(dense)[0] == tiny_model.resolve()
    assert {path.name for path in dense.iterdir()} == {store.META, store.MANIFEST}


def test_fewer_bits_are_fewer_bytes(built: Path) -> None:
    sizes = [
        store.read_json(build.folder_of(built, variant) / store.META)["tensor_bytes"]
        for variant in pool([{"method": "rtn", "bits": [3, 4, 8]}])
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("tied", [True, False])
def test_loaded_logits_are_those_of_the_solved_weights(tmp_path: Path, tied: bool) -> None:
    folder = write_tiny_model(tmp_path / "base", tie_word_embeddings=tied)
    variants = pool([ROWS[0]])
    build_tiny(folder, tmp_path / "store", variants)
    solved, _ = loading.load(folder, "float32")
    linears = layers.linears_of(solved)
    dense = {name: linear.weight.detach().clone() for name, linear in linears.items()}
    tokens = torch.randint(0, 200, (2, 16), generator=torch.Generator().manual_seed(0))
    for variant in variants:
        for name, linear in linears.items():
            linear.weight.data = rtn.quantize(dense[name], variant.bits, 32, variant.sym).dense()
        loaded, _ = loading.load(build.folder_of(tmp_path / "store", variant), "float32")
        with torch.inference_mode():
            assert torch.equal(loaded(tokens).logits, solved(tokens).logits), variant.label


def test_shared_tensors_can_be_told(built: Path) -> None:
    tables = [
        store.read_json(build.folder_of(built, variant) / store.META)["tensors"]
        for variant in [Variant("tiny", "0"), *pool(ROWS)]
    ]
    embeddings = {table["model.embed_tokens.weight"]["sha256"] for table in tables}
    assert len(embeddings) == 1


def test_moments_are_those_of_a_plain_forward_pass(tiny_model: Path) -> None:
    base = BaseModel("tiny", "0", tiny_model)
    tokens = torch.randint(0, 200, (5, 24), generator=torch.Generator().manual_seed(0))
    seeds = {0: [0, 1, 4], 7: [1, 2, 3]}
    model, _ = loading.load(tiny_model, str(loading.compute_dtype()).removeprefix("torch."))
    taken: dict[str, torch.Tensor] = {}
    for name, linear in layers.linears_of(model).items():
        linear.register_forward_pre_hook(
            lambda _, args, name=name: taken.__setitem__(name, args[0].float())
        )
    with torch.inference_mode():
        model(tokens)
    seen = []

    def compare(layer: layerwise.Layer) -> dict[str, torch.Tensor]:
        assert [len(names) for names in layer.inputs] == [3, 1, 2, 1]
        for names, moments in zip(layer.inputs, layer.moments, strict=True):
            for seed, rows in seeds.items():
                X = taken[names[0]][rows].flatten(0, 1)
                assert moments[seed].tokens == len(X)
                torch.testing.assert_close(
                    moments[seed].H, X.T @ X / len(X), rtol=0.02, atol=0.02 * X.var().item()
                )
                torch.testing.assert_close(
                    moments[seed].mean_abs, X.abs().mean(0), rtol=0.02, atol=1e-3
                )
        seen.append(layer.number)
        return {}

    layerwise.walk(
        Tensors(base.path).under,
        layers.skeleton(base.path, False),
        layerwise.Samples(tokens, seeds),
        compare,
    )
    assert seen == [0, 1]


def test_what_is_there_is_not_built_again(built: Path, tiny_model: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    build_tiny(tiny_model, built, pool(ROWS))
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_building_twice_gives_the_same_tensors(tiny_model: Path, tmp_path: Path) -> None:
    more = [
        {"method": ["squeezellm", "nested"], "bits": 3},
        {"method": "rptq", "bits": 4, "act_bits": 8, "damp_percent": 0.05},
        {"method": "kvquant", "kv_bits": 3},
    ]
    variants = pool([ROWS[2], ROWS[4], *more])
    for root in ("one", "two"):
        build_tiny(tiny_model, tmp_path / root, variants)
    for variant in variants:
        one, two = (
            store.read_json(build.folder_of(tmp_path / root, variant) / store.META)["tensors"]
            for root in ("one", "two")
        )
        assert one == two


def test_a_sharded_base_gives_the_same_tensors(
    built: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model, tokenizer = loading.load(tiny_model)
    model.save_pretrained(tmp_path / "base", max_shard_size="60KB")
    tokenizer.save_pretrained(tmp_path / "base")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 1
    variants = pool([ROWS[2]])
    build_tiny(tmp_path / "base", tmp_path / "store", variants)
    for variant in variants:
        one, two = (
            store.read_json(build.folder_of(root, variant) / store.META)["tensors"]
            for root in (built, tmp_path / "store")
        )
        assert one == two


def test_sequential_layers_see_what_was_quantized_before(tiny_model: Path, tmp_path: Path) -> None:
    row = {"method": "gptq", "bits": 2, "damp_percent": 0.05}
    ordinary = pool([row])[0]
    variant = ordinary.sequential()
    assert pool([{"method": "rtn", "bits": 2}])[0].sequential().method_args == ()
    build_tiny(tiny_model, tmp_path, [ordinary, variant])
    one, two = (store.read_json(build.folder_of(tmp_path, v) / store.META)["tensors"]
                for v in (ordinary, variant))  # fmt: skip
    first = "model.layers.0.mlp.down_proj.weight_packed"
    last = "model.layers.1.mlp.down_proj.weight_packed"
    assert one[first] == two[first]  # nothing is quantized before it
    assert one[last] != two[last]
    model, tokenizer = loading.load(build.folder_of(tmp_path, variant))
    drawn = store.read_json(build.folder_of(tmp_path, variant) / store.META)["calibration_indices"]
    tokens = calibrations.chunks(tokenizer, CALIBRATION.fitted, CALIBRATION.length)[drawn]
    seen: list[torch.Tensor] = []
    model.model.layers[1].self_attn.q_proj.register_forward_pre_hook(
        lambda _, args: seen.append(args[0].float().flatten(0, 1))
    )
    with torch.inference_mode():
        model(tokens)
    moments = []

    def visit(layer: layerwise.Layer) -> dict[str, torch.Tensor]:
        moments.append(layer.moments[0][0].H)
        return {f"{n}.weight": model.get_submodule(n).weight for slot in layer.inputs for n in slot}

    base = BaseModel("tiny", "0", tiny_model)
    layerwise.walk(
        Tensors(base.path).under,
        layers.skeleton(base.path, False),
        layerwise.Samples(tokens, {0: [0, 1, 2, 3]}),
        visit,
        sequential=True,
    )
    expected = seen[0].T @ seen[0] / len(seen[0])
    assert (moments[1] - expected).norm() < 0.02 * expected.norm()


def test_what_runs_is_held_once_unless_layers_are_replaced(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = BaseModel("tiny", "0", tiny_model)
    tokens = torch.randint(0, 200, (6, 32), generator=torch.Generator().manual_seed(0))
    run_layer, places = layerwise._run, set[int]()

    def noted(*args: Any) -> torch.Tensor:
        hidden = run_layer(*args)
        places.add(hidden.data_ptr())
        return hidden

    monkeypatch.setattr(layerwise, "_run", noted)

    def run(sequential: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        examples = []

        def visit(layer: layerwise.Layer) -> dict[str, torch.Tensor]:
            examples.append(layer.example[0][0])
            return layer.stored

        skeleton, read = layers.skeleton(base.path, False), Tensors(base.path).under
        samples = layerwise.Samples(tokens, {0: [1, 4]})
        return layerwise.walk(read, skeleton, samples, visit, 0, sequential), examples

    once, examples = run(sequential=False)
    assert len(places) == 1
    twice, others = run(sequential=True)
    assert torch.equal(once, twice)
    assert all(map(torch.equal, examples, others))


def test_products_of_solvers_have_one_thread_each() -> None:
    torch.set_num_threads(2)
    try:
        with one_pass._threads() as pool:
            found = list(pool.map(lambda _: torch.get_num_threads(), range(8)))
        assert found == [1] * 8
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_group_size_must_divide() -> None:
    variants = pool([{"method": "rtn", "bits": 4, "group_size": 128}])
    with pytest.raises(ValueError, match=r"rtn-4b-g128-s0: group_size must divide .*q_proj"):
        one_pass.check_groups(variants, {"o_proj": 256, "q_proj": 64})


def test_another_calibration_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    variants = [replace(pool([ROWS[2]])[0], calibration="another")]
    with pytest.raises(ValueError, match="another calibration"):
        build_tiny(tiny_model, tmp_path, variants)


def test_too_little_text_stops_before_anything_is_kept(tiny_model: Path, tmp_path: Path) -> None:
    calibration = Calibration("short", 4, 64)
    variants = [replace(pool([ROWS[2]])[0], calibration=calibration.identity)]
    with pytest.raises(ValueError, match=r"holds 0 samples, calibration.samples=4"):
        build.build_pool(
            BaseModel("tiny", "0", tiny_model), variants, calibration, tmp_path, silent
        )
    assert not (tmp_path / "variants").exists()


def test_a_variant_far_from_dense_is_degenerate(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "base")
    variants = pool([{"method": "rtn", "bits": 2}])
    base = BaseModel("tiny", "0", folder)
    build.build_pool(base, variants, CALIBRATION, tmp_path / "store", silent, 0.5)
    meta = store.read_json(build.folder_of(tmp_path / "store", variants[0]) / store.META)
    assert meta["degenerate"]


def test_a_model_larger_than_memory_is_built_by_layers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    variants = pool(ROWS[:1])
    build_tiny(write_tiny_model(tmp_path / "base"), tmp_path / "store", variants)
    meta = store.read_json(build.folder_of(tmp_path / "store", variants[0]) / store.META)
    assert meta["read_back"] == "layer by layer"


def test_a_ready_made_checkpoint_joins(built: Path, tiny_model: Path, tmp_path: Path) -> None:
    made = build.folder_of(built, pool(ROWS)[0])
    base = BaseModel("tiny", "0", tiny_model)
    variant = base_model.path_variant(base, path=str(made), label="mine", bits=3)
    build_tiny(tiny_model, tmp_path, [variant])
    meta = store.read_json(build.folder_of(tmp_path, variant) / store.META)
    theirs = store.read_json(made / store.META)
    assert meta["label"] == "mine"
    assert meta["tensors"] == theirs["tensors"]
    assert meta["perplexity"] == theirs["perplexity"]


@pytest.mark.parametrize(
    ("architecture", "overrides"),
    [
        ("Qwen3", {}),
        ("Gemma", {}),
        ("Phi3", {}),
        pytest.param("Qwen2", {}, marks=pytest.mark.slow),
        pytest.param("Mistral", {"sliding_window": 16}, marks=pytest.mark.slow),
        pytest.param("Gemma2", {"sliding_window": 16}, marks=pytest.mark.slow),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, overrides: dict[str, Any]) -> None:
    folder = write_tiny_model(tmp_path / "base", architecture, **overrides)
    rows = [
        {"method": method, "bits": 8, "damp_percent": 0.05} for method in ("rtn", "gptq", "awq")
    ]
    variants = pool(rows)
    build_tiny(folder, tmp_path / "store", variants)
    for variant in variants:
        meta = store.read_json(build.folder_of(tmp_path / "store", variant) / store.META)
        assert meta["perplexity"] == pytest.approx(meta["dense_perplexity"], rel=0.02)


@pytest.mark.parametrize(
    "architecture", ["Qwen3Moe", pytest.param("Qwen2Moe", marks=pytest.mark.slow)]
)
def test_experts_that_saw_too_little_are_rounded(tmp_path: Path, architecture: str) -> None:
    sizes = {"num_experts": 16, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
             "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1}  # fmt: skip
    folder = write_tiny_model(tmp_path / "base", architecture, **sizes)
    rows = [{"method": m, "bits": 8, "damp_percent": 0.05} for m in ("rtn", "gptq", "awq")]
    variants = pool(rows)
    build_tiny(folder, tmp_path / "store", variants)
    metas = [store.read_json(build.folder_of(tmp_path / "store", v) / store.META)
             for v in variants]  # fmt: skip
    for meta in metas:
        assert meta["perplexity"] == pytest.approx(meta["dense_perplexity"], rel=0.02)
        assert "model.layers.0.mlp.experts.3.gate_proj.weight_packed" in meta["tensors"]
    assert metas[0]["rounded_to_nearest"] == []
    fallen = metas[1]["rounded_to_nearest"]
    assert fallen == metas[2]["rounded_to_nearest"]
    assert 0 < len(fallen) < 2 * 16 * 3
    assert all(".experts." in name for name in fallen)
    for name in fallen:
        key = f"{name}.weight_packed"
        assert metas[1]["tensors"][key] == metas[0]["tensors"][key] == metas[2]["tensors"][key]
