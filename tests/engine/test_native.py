"""All layers in one call, against the layers that transformers runs, bit for bit."""

import numpy as np
import pytest
import torch
from tiny import write_tiny_model

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import gathered, native, packed, prefix, shim
from ptsearch.engine.gathered import Gathered

BF16 = EngineConfig(dtype="bfloat16", device="cpu", threads=1)
WIDE = {"initializer_range": 0.3}
KNOWN = {
    "llama": ("Llama", WIDE),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, **WIDE}),
    "smollm2": (
        "Llama",
        {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8},
    ),
    "qwen2": ("Qwen2", WIDE),
    "qwen3": ("Qwen3", WIDE),
    "mistral": ("Mistral", {"sliding_window": 24, **WIDE}),
}
OTHERS = {
    "gelu": ("Llama", {"hidden_act": "gelu", **WIDE}),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, **WIDE}),
    "gemma2": ("Gemma2", WIDE),
    "qwen2-sliding": (
        "Qwen2",
        {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": 24, **WIDE},
    ),
}
ALIKE = [tuple((7 * k + n) % 250 for k in range(60)) for n in range(3)]
SEQUENCES = [(*ALIKE[n % 3], *((n + 3 * k) % 250 for k in range(2 + 5 * n))) for n in range(9)]

pytestmark = pytest.mark.skipif(not len(shim.functions()), reason="torch exports no shim")


@pytest.fixture(autouse=True)
def one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def load(kind: tuple[str, dict], folder, settings: EngineConfig = BF16) -> engines.Engine:
    engine = engines.load(write_tiny_model(folder, kind[0], **kind[1]), settings)
    random = torch.Generator().manual_seed(0)
    for name, weight in engine.model.named_parameters():
        if "norm" in name:  # they are all 1
            weight.uniform_(0.5, 1.5, generator=random)
    return engine


def ran(model, every: int = 1) -> list[torch.Tensor]:
    """Each nth token's logits of sequences in two packs, and what the first leaves the second."""
    plan = prefix.share(SEQUENCES, 40, 1)
    store: packed.Store = {}
    begins = [n for n in range(len(plan.segments)) if plan.last[n] > n]
    rest = [n for n in range(len(plan.segments)) if plan.last[n] == n]
    found = []
    for part, keep in ((begins, begins), (rest, [])):
        pack = Gathered(plan, part, keep, store, model)
        found.append(
            native.forward(model, pack, torch.arange(pack.ids.numel())[every - 1 :: every])
        )
    stored = [kv for n in begins for _, pair in sorted(store[n].items()) for kv in pair]
    return found + stored


@pytest.mark.parametrize("every", [1, 7, 1000])
@pytest.mark.parametrize("kind", KNOWN.values(), ids=KNOWN)
def test_the_bits_are_those_of_transformers(kind, every, tmp_path, monkeypatch) -> None:
    model = load(kind, tmp_path).model
    native.enable(model)
    assert model in native._ways
    calls: list[str] = []
    usual = packed.forward
    monkeypatch.setattr(packed, "forward", lambda *asked: calls.append("") or usual(*asked))
    found = ran(model, every)
    assert not calls
    del native._ways[model]
    expected = ran(model, every)
    assert len(calls) == 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", OTHERS.values(), ids=OTHERS)
def test_other_models_go_the_usual_way(kind, tmp_path) -> None:
    engine = engines.keeping(load(kind, tmp_path), 1000)
    assert engine.model not in native._ways


@pytest.mark.parametrize("change", ["hook", "eps", "fp32", "shim", "wrong"])
def test_whatever_is_not_known_goes_the_usual_way(change, tmp_path, monkeypatch) -> None:
    settings = EngineConfig(dtype="float32" if change == "fp32" else "bfloat16", device="cpu")
    model = load(KNOWN["llama"], tmp_path, settings).model
    if change == "hook":
        model.model.layers[1].mlp.register_forward_hook(lambda *_: None)
    if change == "eps":
        model.model.layers[1].input_layernorm.eps = np.float32(0.1)
    if change == "shim":
        monkeypatch.setattr(shim, "functions", lambda: np.empty(0, np.int64))
    if change == "wrong":
        usual = native._weights
        wrong = {"norms": native._weights(model, shim.Handles()).norms[::-1].copy()}
        monkeypatch.setattr(native, "_weights", lambda *given: usual(*given)._replace(**wrong))
    before = ran(model)
    native.enable(model)
    assert model not in native._ways
    for one, other in zip(ran(model), before, strict=True):
        assert torch.equal(one, other)


def test_a_server_goes_this_way_call_after_call(tmp_path, monkeypatch) -> None:
    plain = load(KNOWN["smollm2"], tmp_path)
    engine = engines.keeping(plain, 1000)
    packs: list[int] = []
    usual = native._layers
    monkeypatch.setattr(
        native, "_layers", lambda f, w, r: packs.append(len(r.whole.x)) or usual(f, w, r)
    )
    monkeypatch.setattr(gathered, "COPIED", 2**40)
    asked, labels = [list(tokens) for tokens in SEQUENCES], [[[1], [2, 3]]] * len(SEQUENCES)
    expected = engines.score(plain, asked, labels, lambda *_: None)
    for _ in range(4):
        found = engines.score(engine, asked, labels, lambda *_: None)
        for row, other in zip(found, expected, strict=True):
            assert row == pytest.approx(other, abs=0.05)
    assert all(size % native.TILE == 0 for size in packs)
    assert len(packs) >= 4
    assert min(packs) < 0.6 * max(packs)  # what is kept is not computed again


def test_a_product_that_fails_is_told() -> None:
    f = shim.functions()
    with shim.handles() as handles:
        x, weight = handles.of(torch.ones(2, 3).bfloat16()), handles.of(torch.ones(4, 5).bfloat16())
        assert shim.linear(f, x, weight, 0, shim.name("none")) == 0
        assert shim.linear(f, 0, weight, 0, shim.name("none")) == 0
        assert not shim.bmm(f, x, weight, x)
    assert not handles
