"""GGUF variants: quantized by llama.cpp, or of a file that is there."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.config import BuildConfig, Config, EngineConfig, ModelConfig, PoolConfig
from ptsearch.evaluation import early_check
from ptsearch.models import gguf_file, gguf_weights, loading
from ptsearch.models.base_model import BaseModel, path_variant
from ptsearch.pool import build, gguf_build
from ptsearch.pool import calibration as calibrations
from ptsearch.pool.calibration import Calibration
from ptsearch.testing.tiny_model import write_tiny_model
from ptsearch.variant import Variant, expand_pool, short_labels, unique_labels

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs pip install 'ptsearch[llamacpp]'"
)
CALIBRATION = Calibration("little foxes jump over 11 dogs. " * 200, samples=2, length=32)
TYPES = ["Q2_K", "IQ4_XS", "Q4_K_M", "Q8_0"]


def pool(types, **fields):
    rows = [{"method": "gguf", "type": types, **fields}]
    return expand_pool(Variant("tiny", "0"), rows, {"group_size": 64}, CALIBRATION.identity)


def made(base, variants, root):
    failures = build.build_pool(base, variants, CALIBRATION, root, lambda *_: None, 1e9)
    assert not failures
    return [build.folder_of(root, variant) for variant in variants]


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A model whose rows are multiples of 256, but for one linear's."""
    folder = tmp_path_factory.mktemp("wide")
    write_tiny_model(folder, hidden_size=256, intermediate_size=320, initializer_range=0.1)
    return BaseModel("tiny", "0", folder)


@pytest.fixture(scope="module")
def folders(wide, tmp_path_factory):
    return dict(zip(TYPES, made(wide, pool(TYPES), tmp_path_factory.mktemp("store")), strict=True))


def test_a_type_is_a_variant_of_about_so_many_bits():
    variants = unique_labels(pool(TYPES, seed=[0, 1]))
    assert list(variants)[:2] == ["gguf-Q2_K-s0", "gguf-Q2_K-s1"]
    assert [variants[f"gguf-{kind}-s0"].bits for kind in TYPES] == [2, 4, 4, 8]
    assert short_labels(unique_labels(pool(TYPES)))["gguf-Q4_K_M-s0"] == "gguf-Q4_K_M"
    assert all(variant.calibration for variant in variants.values())
    with pytest.raises(ValueError, match="gguf needs type, one of IQ1_S, "):
        pool(["Q9_K"])
    with pytest.raises(ValueError, match="gguf needs type"):
        expand_pool(Variant("tiny", "0"), [{"method": "gguf", "bits": 4}], {}, "")
    with pytest.raises(ValueError, match="no field 'type'"):
        expand_pool(Variant("tiny", "0"), [{"method": "rtn", "type": "Q8_0"}], {}, "")


@needs_llama
def test_tensors_that_a_type_does_not_fit_fall_back_and_are_counted(folders):
    metas = {kind: store.read_meta(folder) for kind, folder in folders.items()}
    assert {"Q2_K", "Q3_K"} & set(metas["Q2_K"].types)  # 256 columns
    assert {"Q4_0", "IQ4_NL", "Q5_0"} & set(metas["Q2_K"].types)  # 320
    assert set(metas["Q8_0"].types) == {"Q8_0", "F32"}
    for kind, meta in metas.items():
        held = gguf_file.read(folders[kind] / gguf_file.NAME).tensor_bytes
        assert held == meta.tensor_bytes == sum(t.bytes for t in meta.tensors.values())
    assert metas["Q2_K"].tensor_bytes < metas["Q4_K_M"].tensor_bytes < metas["Q8_0"].tensor_bytes


@needs_llama
@pytest.mark.parametrize("kind", TYPES)
def test_both_engines_run_the_same_weights(folders, kind):
    prompts, labels = [[5, 6, 7], list(range(40))], [[[10], [11, 12]]] * 2
    rows = []
    for settings in (EngineConfig(name="llamacpp", threads=1), EngineConfig(dtype="float32")):
        with engines.opened(folders[kind], settings) as engine:
            rows.append(engines.score(engine, prompts, labels, lambda *_: None))
    for row, expected in zip(*rows, strict=True):
        assert row == pytest.approx(expected, abs=0.25)  # llama.cpp rounds inputs to 8 bits


@needs_llama
def test_the_importance_of_a_column_is_its_mean_square(wide, tmp_path, monkeypatch):
    found = {}

    def quantize(source, out, kind, importance):
        found.update(importance)
        raise ValueError("seen")

    monkeypatch.setattr(gguf_build.gguf, "quantize", quantize)
    variants = pool(["IQ3_XXS"])
    failures = build.build_pool(wide, variants, CALIBRATION, tmp_path, lambda *_: None)
    assert failures == {variants[0].id: "seen"}
    assert len(found) == 2 * 7
    model, tokenizer = loading.load(wide.path, "float32")
    seen = []
    linear = model.model.layers[1].mlp.down_proj
    linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    chunks = calibrations.chunks(tokenizer, CALIBRATION.fitted, 32, "raw")
    with torch.inference_mode():
        model(chunks[calibrations.draw(len(chunks), 2, 0)])
        ratio = found["blk.1.ffn_down.weight"] / seen[0].square().mean((0, 1))
    assert ratio == pytest.approx(ratio.mean().expand_as(ratio), rel=0.05)


@needs_llama
def test_a_type_that_needs_importance_says_so_without(wide, tmp_path):
    gguf_weights.write(wide.path, tmp_path / "base.gguf", "float32")
    with pytest.raises(ValueError, match=r"llama\.cpp does not quantize to IQ2_XXS: "):
        gguf_build.gguf.quantize(tmp_path / "base.gguf", tmp_path / "out.gguf", "IQ2_XXS", {})


@pytest.fixture
def ready(tiny_model, tmp_path):
    path = tmp_path / "tiny-BF16.gguf"
    gguf_weights.write(tiny_model, path, "bfloat16")
    return path


def test_a_ready_made_file_is_a_member(ready, tiny_model, tmp_path):
    base = BaseModel("tiny", "0", tiny_model)
    variant = path_variant(base, str(ready), "half")
    assert (variant.label, variant.bits) == ("half", 16)
    [folder] = made(base, [variant], tmp_path / "store")
    meta = store.read_meta(folder)
    assert (meta.checkpoint, set(meta.types)) == (".", {"BF16", "F32"})
    assert meta.perplexity == pytest.approx(meta.dense_perplexity, rel=1e-6)
    weights = load_file(tiny_model / "model.safetensors")
    model, _ = loading.load(folder, "bfloat16")
    assert all(torch.equal(model.state_dict()[name], weights[name]) for name in weights)
    with ready.open("r+b") as file:
        file.seek(-9, 2)
        file.write(b"x")
    assert store.verify_folder(folder) == [
        f"{folder / 'model.gguf'}: contents differ from what was written"
    ]


def test_a_file_that_is_none_is_refused_before_any_work(ready, tiny_model, tmp_path):
    model = ModelConfig(name="tiny", source="path", path=str(tiny_model))

    def check(**row):
        paths = PoolConfig(paths=[{"path": str(ready), "label": "half", **row}])
        early_check.check(Config(model=model, pool=paths, build=BuildConfig()))

    check()
    check(bits=4)
    with pytest.raises(ValueError, match=r"rows .*FILE\.gguf, label: NAME"):
        check(bits="4")
    other = write_tiny_model(tmp_path / "other", num_hidden_layers=1)
    gguf_weights.write(other, tmp_path / "other.gguf", "float16")
    with pytest.raises(ValueError, match="another model: num_hidden_layers is 1, for the base"):
        check(path=str(tmp_path / "other.gguf"))
    ready.write_bytes(ready.read_bytes()[:-999])
    with pytest.raises(ValueError, match=r"cut off: .* ends at byte"):
        check()


def test_another_architecture_is_refused(tmp_path, ready):
    base = BaseModel("q", "0", write_tiny_model(tmp_path / "q", "Qwen3"))
    reason = r"^pool\.paths, half: a GGUF of another model: architecture is llama, .* qwen3$"
    with pytest.raises(ValueError, match=reason):
        path_variant(base, str(ready), "half")
