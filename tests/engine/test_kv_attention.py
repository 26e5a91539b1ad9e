"""Rounded keys and values: the engine's two paths against a direct computation, token by token."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from tiny import write_tiny_model
from tiny_difference import off
from tiny_pool import CALIBRATION, build_tiny, pool
from tiny_prompts import FP32, LABELS, PROMPTS, changed, silent
from transformers.models.llama import modeling_llama

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.benchmarks import Benchmark, Sample, Scenario
from ptsearch.benchmarks.parsing import Question
from ptsearch.engine import kv_attention, memory
from ptsearch.evaluation import evaluate
from ptsearch.models import loading
from ptsearch.pool import build
from ptsearch.quantize import kv as kv_methods
from ptsearch.quantize.kv import KV, Rounding

Array = NDArray[np.float32]
ROWS: list[dict[str, Any]] = [
    {"method": "kivi", "bits": 16, "kv_bits": 2, "kv_window": [0, 40]},
    {"method": "kvquant", "bits": 16, "kv_bits": 3, "kv_window": [0, 9]},
    {"method": "wkvquant", "bits": 4, "kv_bits": 4, "damp_percent": 0.05},
    {"method": "rtn", "bits": 4, "kv_bits": 4, "kv_window": 0, "act_bits": 8},
]
SHORT = PROMPTS[:9]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_tiny_model(tmp_path_factory.mktemp("base"), initializer_range=0.1)
    root = tmp_path_factory.mktemp("store")
    build_tiny(folder, root, pool(ROWS))
    return root


def plain(engine: engines.Engine) -> engines.Engine:
    return changed(engine, packed=False)


def span(X: Array, bits: int, axis: int) -> Array:
    """On the grid between the least and the largest value along an axis."""
    low = X.min(axis, keepdims=True).astype(np.float16).astype(np.float32)
    step = ((X.max(axis, keepdims=True) - low) / (2**bits - 1)).astype(np.float16)
    step = step.astype(np.float32)
    return np.clip(np.round((X - low) / step), 0, 2**bits - 1) * step + low


def rounded_by(rule: Rounding, keys: Array, values: Array, bare: Array, rope: Any) -> KV:
    """Every token rounded, one by one or group by group. All (K, n, D); bare: keys before rope."""
    keys, values = keys.copy(), values.copy()
    tensors = {name: tensor.numpy() for name, tensor in rule.tensors.items()}
    for j in range(keys.shape[1]):
        if rule.method == "kivi":
            values[:, j] = span(values[:, j], rule.bits, 1)
            if (j + 1) % 32 == 0:
                for head in range(len(keys)):
                    keys[head, j - 31 : j + 1] = span(keys[head, j - 31 : j + 1], rule.bits, 0)
        elif rule.method == "wkvquant":
            for X, name in ((keys, "key"), (values, "value")):
                center, half = tensors[f"{name}_center"], tensors[f"{name}_half"]
                X[:, j] = span((X[:, j] - center) / half, rule.bits, 1) * half + center
        else:
            how = (tensors["key_center"], tensors["key_half"], tensors["key_codes"])
            keys[:, j] = rope(on_codes(bare[:, j], *how), j)
            ordered = np.sort(values[:, j].flatten())
            low, high = ordered[1], ordered[-2]
            how = ((high + low) / 2, (high - low) / 2, tensors["value_codes"])
            values[:, j] = on_codes(values[:, j], *how)
    return KV(keys, values)  # type: ignore[arg-type]


def is_old(rule: Rounding, j: int, t: int) -> bool:
    """Whether the query at t sees token j rounded."""
    if rule.method == "kivi":
        last = j // 32 * 32 + 31
        return last <= t - rule.window
    first = 1 if rule.method == "kvquant" else 0
    newest = t - max(rule.window, 1 if rule.method == "wkvquant" else 0)
    return first <= j <= newest


def on_codes(X: Array, center: Any, half: Any, codes: Array) -> Array:
    scaled = (X - center) / half
    nearest = codes[np.abs(scaled[..., None] - codes).argmin(-1)]
    found: Array = np.where(np.abs(scaled) > 1, X, nearest * half + center)
    return found


def direct(folder: Path, engine: engines.Engine) -> Callable[[list[int]], torch.Tensor]:
    """Logits of one prompt, every query by itself, in floats."""
    model, _ = loading.load(folder, "float32", "cpu")
    bare: dict[int, Array] = {}
    for index, layer in enumerate(model.model.layers):
        layer.self_attn.k_proj.register_forward_hook(
            lambda _m, _a, out, index=index: bare.__setitem__(
                index, out[0].unflatten(-1, (2, -1)).transpose(0, 1).numpy()
            )
        )
    rules = [layer.self_attn.rounding for layer in engine.runner.model.model.layers]
    # the same rounding of inputs, whose own law is elsewhere
    for name, module in engine.runner.model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if "self_attn" not in name.split(".")[-1]:
                model.get_submodule(name).register_forward_pre_hook(hook)

    def rope(X: Array, position: int) -> Array:
        cos, sin = model.model.rotary_emb(torch.ones(1), torch.tensor([[position]]))
        turned = modeling_llama.apply_rotary_pos_emb(*[torch.from_numpy(X)[None, :, None]] * 2,
                                                     cos, sin)[1]  # fmt: skip
        return np.asarray(turned[0, :, 0])

    def attend(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        q, k, v = (part[0].numpy() for part in (query, key, value))
        out = np.zeros((q.shape[1], q.shape[0], v.shape[2]), np.float32)
        rule = rules[module.layer_idx]
        rounded_k, rounded_v = rounded_by(rule, k, v, bare[module.layer_idx], rope)
        for t in range(q.shape[1]):
            old = np.array([is_old(rule, j, t) for j in range(t + 1)])[:, None]
            for head in range(len(q)):
                kv = head // 2
                keys = np.where(old, rounded_k[kv, : t + 1], k[kv, : t + 1])
                values = np.where(old, rounded_v[kv, : t + 1], v[kv, : t + 1])
                scores = keys @ q[head, t] * module.scaling
                weights = np.exp(scores - scores.max())
                out[t, head] = weights @ values / weights.sum()
        return torch.from_numpy(out)[None], None

    transformers.AttentionInterface.register("test_direct", attend)
    model.set_attn_implementation("test_direct")

    def logits(prompt: list[int]) -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = model(torch.tensor([prompt]), use_cache=False).logits[0]
        return found

    return logits


@pytest.mark.parametrize("number", range(6))
def test_both_paths_are_the_direct_computation(built: Path, number: int) -> None:
    folder = build.folder_of(built, pool(ROWS)[number])
    engine = engines.load(folder, FP32)
    assert engine.runner.packed
    logits = direct(folder, engine)
    expected = []
    for prompt, labels in zip(SHORT, LABELS, strict=False):
        said = [logits(prompt + label)[len(prompt) - 1 : -1].log_softmax(-1) for label in labels]
        pairs = zip(said, labels, strict=True)
        expected.append([row[range(len(label)), label].sum().item() for row, label in pairs])
    few = changed(engine, limits=engine.runner.limits._replace(tokens=96))
    asked = LABELS[: len(SHORT)]
    found = [engines.score(path, SHORT, asked, silent) for path in (engine, few)]
    found.append(engines.score(plain(engine), SHORT, asked, silent))
    for layer in engine.runner.model.model.layers:
        del layer.self_attn.rounding
    engine.runner.model.set_attn_implementation("eager")
    unrounded = engines.score(changed(engine, packed=False), SHORT, asked, silent)
    assert [off(rows, expected, unrounded) < 0.1 for rows in found] == [True] * 3


@pytest.mark.parametrize("number", range(6))
def test_replies_do_not_depend_on_what_is_asked_together(built: Path, number: int) -> None:
    engine = engines.load(build.folder_of(built, pool(ROWS)[number]), FP32)
    new = [3 + 5 * (k % 3) for k in range(len(PROMPTS))]
    together = engines.generate(engine, PROMPTS, new, silent)
    few = changed(engine, limits=memory.Limits(96, 4, engine.runner.limits.align))
    assert engines.generate(few, PROMPTS, new, silent) == together
    alone = [engines.generate(engine, [p], n, silent)[0]
             for p, n in zip(PROMPTS[:4], new, strict=False)]  # fmt: skip
    assert alone == together[:4]
    slow = zip(engines.generate(plain(engine), PROMPTS, new, silent), together, strict=True)
    assert np.mean([one == other for one, other in slow]) > 0.7


def test_more_bits_are_closer(built: Path) -> None:
    for method in ("kivi", "kvquant", "wkvquant"):
        generator = torch.Generator().manual_seed(0)
        kv = KV(*(torch.randn(2, 64, 32, generator=generator) for _ in range(2)))
        recorded = kv_methods.Recorded(kv, KV(*(torch.ones_like(t) for t in kv)))
        errors = []
        for bits in (2, 3, 4, 8):
            tensors = kv_methods.fit(method, bits, recorded, 0)
            rule = Rounding(method, bits, 0, tensors, lambda X, _start, _undo: X)
            states = KV(*(part[:, None] for part in kv))
            errors.append(sum((a - b).square().mean().item()
                              for a, b in zip(rule(states, 0), states, strict=True)))  # fmt: skip
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-3 < errors[0] < 0.5


def test_perplexity_is_that_of_the_rounded_cache(built: Path) -> None:
    found = [store.read_json(build.folder_of(built, v) / store.META) for v in pool(ROWS)]
    assert len({meta["perplexity"] for meta in found}) == len(found)
    assert all(meta["perplexity"] != meta["dense_perplexity"] for meta in found)
    assert len(found[2]["calibration_indices"]) == CALIBRATION.samples


def test_a_data_type_follows_what_matters() -> None:
    X = torch.linspace(-1, 1, 400)[None, :, None]
    ones, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    matters = torch.where(X > 0.5, 10.0, 0.1)
    codes = kv_methods.data_type(X, zero, ones, matters, 3, 0)
    assert (codes > 0.5).sum() >= 5
    even = kv_methods.data_type(X, zero, ones, ones.expand_as(X), 3, 0)
    assert even.diff().std() < 0.1


@pytest.mark.parametrize(
    ("architecture", "sizes"),
    [
        ("Phi3", {}),
        ("Gemma2", {"sliding_window": 16}),
        pytest.param("Qwen3", {}, marks=pytest.mark.slow),
        pytest.param("Mistral", {"sliding_window": 16}, marks=pytest.mark.slow),
    ],
)
def test_other_architectures(tmp_path: Path, architecture: str, sizes: dict[str, Any]) -> None:
    sizes = sizes | {"initializer_range": 0.1}
    folder = write_tiny_model(tmp_path / "base", architecture, **sizes)
    variants = pool([{"method": ["kivi", "kvquant"], "kv_bits": 3, "kv_window": 0}])
    build_tiny(folder, tmp_path / "store", variants)
    dense = engines.load(folder, FP32)
    unrounded = engines.score(dense, SHORT, LABELS[: len(SHORT)], silent)
    for variant in variants:
        engine = engines.load(build.folder_of(tmp_path / "store", variant), FP32)
        assert engine.runner.packed
        packed = engines.score(engine, SHORT, LABELS[: len(SHORT)], silent)
        slow = engines.score(plain(engine), SHORT, LABELS[: len(SHORT)], silent)
        assert off(slow, packed, unrounded) < 0.1


def test_a_model_without_reachable_keys_is_refused(tmp_path: Path) -> None:
    for architecture, sizes in (("Mamba", {"state_size": 4}), ("Bloom", {})):
        model, _ = loading.load(write_tiny_model(tmp_path / architecture, architecture, **sizes))
        with pytest.raises(ValueError, match=r"kv_bits: .*ForCausalLM"):
            kv_attention.attach(model, "kivi", 2, 0, {})


def test_a_window_that_no_prompt_leaves_is_no_member(built: Path) -> None:
    engine = engines.load(build.folder_of(built, pool(ROWS)[1]), FP32)  # 40 tokens, 32 a group

    def asked(prompt: str) -> Benchmark:
        sample = Sample("1", "i", "s", prompt, Question(("no", "yes")), 0)
        return Benchmark("ethics", "fake", 1, {"s": Scenario("s", "s")}, (sample,), {})

    reason = evaluate.unexercised(evaluate.asker(engine), [asked("x" * 71)])
    assert (
        reason == "kv_bits: no prompt with its reply is longer than 72 tokens: nothing is rounded"
    )
    assert evaluate.unexercised(evaluate.asker(engine), [asked("x" * 71), asked("x" * 72)]) == ""
