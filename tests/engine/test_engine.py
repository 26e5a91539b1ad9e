"""The engine against transformers, one prompt at a time, on tiny random models in fp32."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import write_tiny_model
from tiny_prompts import DEMOS, FP32, LABELS, OTHER, PROMPTS, WIDE, changed, one_score, silent

from ptsearch import engine as engines
from ptsearch.config import EngineConfig
from ptsearch.engine import decoding, lanes, logprobs, memory, opening, packed
from ptsearch.engine import prefix_cache as kept
from ptsearch.models import loading

SLIDING = {"sliding_window": 24, **WIDE}
SMOLLM2 = {"hidden_size": 72, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 8}
ARCHITECTURES = {
    "llama": ("Llama", WIDE),
    "llama-untied": ("Llama", {"tie_word_embeddings": False, **WIDE}),
    "llama-bias": ("Llama", {"attention_bias": True, "mlp_bias": True, **WIDE}),
    "smollm2": (  # its shape: three query heads a key/value head, tied
        "Llama",
        {
            "hidden_size": 72,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "head_dim": 8,
            **WIDE,
        },
    ),
    "smollm3": ("SmolLM3", {"no_rope_layer_interval": 2, **WIDE}),
    "qwen2": ("Qwen2", WIDE),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1, **SLIDING}),
    "qwen3": ("Qwen3", WIDE),
    "mistral": ("Mistral", SLIDING),
    "gemma": ("Gemma", WIDE),
    "gemma2": ("Gemma2", {"final_logit_softcapping": 5.0, **SLIDING}),
    "gemma3": (
        "Gemma3",
        {"layer_types": ["sliding_attention", "full_attention"], **SLIDING},
    ),
}
FALLBACKS = {"bloom": ("Bloom", WIDE), "mamba": ("Mamba", {"state_size": 4})}

PEAK = Path("/proc/self/clear_refs")


@pytest.fixture(scope="session", params=ARCHITECTURES)
def engine(request, tmp_path_factory) -> engines.Engine:
    architecture, overrides = ARCHITECTURES[request.param]
    folder = write_tiny_model(tmp_path_factory.mktemp(request.param), architecture, **overrides)
    loaded = engines.load(folder, FP32)
    assert loaded.runner.packed
    return loaded


@pytest.fixture(scope="session", params=FALLBACKS)
def fallback(request, tmp_path_factory) -> engines.Engine:
    architecture, overrides = FALLBACKS[request.param]
    folder = write_tiny_model(tmp_path_factory.mktemp(request.param), architecture, **overrides)
    return engines.load(folder, FP32)


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> engines.Engine:
    return engines.load(write_tiny_model(tmp_path_factory.mktemp("llama"), **WIDE), FP32)


def reference(engine: engines.Engine) -> Any:
    """The same checkpoint through transformers alone."""
    model, _ = loading.load(Path(engine.tokenizer.name_or_path), "float32", "cpu")
    if engine.runner.packed:
        model.set_attn_implementation("eager")  # the fused kernel leaves Gemma 2's soft cap out
    return model


@torch.inference_mode()
def one_reply(model: Any, prompt: list[int], new: int, eos: set[int]) -> tuple[list[int], bool]:
    """(greedy reply, whether its every margin is above 2e-4)."""
    output = model.generate(
        torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=sorted(eos),
        pad_token_id=min(eos),
        output_logits=True,
        return_dict_in_generate=True,
    )
    tops = torch.stack(output.logits).topk(2).values
    clear = bool((tops[..., 0] - tops[..., 1]).min() > 2e-4)
    reply = output.sequences[0, len(prompt) :].tolist()
    return reply[:-1] if reply[-1] in eos else reply, clear


def assert_scores_equal(engine: engines.Engine) -> None:
    model = reference(engine)
    found = engines.score(engine, PROMPTS, LABELS, silent)
    for prompt, labels, row in zip(PROMPTS, LABELS, found, strict=True):
        assert row == pytest.approx([one_score(model, prompt, label) for label in labels], abs=1e-4)


def assert_replies_equal(engine: engines.Engine) -> None:
    model = reference(engine)
    new = [1 + k % 9 for k in range(len(PROMPTS))]
    eos = {reply[0] for reply in engines.generate(engine, PROMPTS[:2], 1, silent)} | {3, 77}
    found = engines.generate(engine._replace(eos=frozenset(eos)), PROMPTS, new, silent)
    clear = 0
    for prompt, count, reply in zip(PROMPTS, new, found, strict=True):
        truth, is_clear = one_reply(model, prompt, count, eos)
        if is_clear:
            assert reply == truth
            clear += 1
    assert clear >= len(PROMPTS) - 2


def test_scores_equal_transformers(engine):
    assert_scores_equal(engine)


def test_scores_behind_kept_prefixes_are_the_same(engine):
    asked = [[*prompt, end, 3] for end in (1, 2, 4) for prompt in PROMPTS]  # else they are not kept
    truth = engines.score(engine, asked, LABELS * 3, silent)
    keeping = changed(engine, kept=engines.Kept(10_000))
    for call in range(4 * kept.OFTEN):
        end = len(PROMPTS) * (call // 3 % 3)
        some = range(end + call % 3, end + len(PROMPTS), 3)
        labels = [LABELS[i - end] for i in some]
        found = engines.score(keeping, [asked[i] for i in some], labels, silent)
        for i, row in zip(some, found, strict=True):
            assert row == pytest.approx(truth[i], abs=1e-4)
    assert any(piece.before for piece in keeping.runner.kept.pieces.values())


def test_replies_equal_transformers(engine):
    assert_replies_equal(engine)


def test_a_model_outside_the_packed_path_says_so_and_gives_the_same(
    fallback, tmp_path_factory, caplog
):
    assert not fallback.runner.packed
    opening._warn_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        engines.load(Path(fallback.tokenizer.name_or_path), FP32)
    said = [r for r in caplog.records if r.name == "ptsearch.engine.opening"]
    assert ["plain batches" in r.getMessage() for r in said] == [True]
    assert_scores_equal(fallback)
    assert_replies_equal(fallback)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, len(PROMPTS) - 1), min_size=1), st.sampled_from([64, 500, 4096]))
def test_answers_do_not_depend_on_the_batch(llama, chosen, max_tokens):
    alone = changed(llama, limits=memory.Limits(4096, 64))
    among = changed(llama, limits=memory.Limits(max_tokens, 16))
    prompts, labels = [PROMPTS[k] for k in chosen], [LABELS[k] for k in chosen]
    scores = engines.score(among, prompts, labels, silent)
    replies = engines.generate(among, prompts, 5, silent)
    for prompt, options, row, reply in zip(prompts, labels, scores, replies, strict=True):
        assert row == pytest.approx(engines.score(alone, [prompt], [options], silent)[0], abs=1e-4)
        assert [reply] == engines.generate(alone, [prompt], 5, silent)


def test_the_budget_bounds_forwards_and_what_is_kept(llama, monkeypatch):
    tokens, kept = [], []
    real = packed.forward

    def watched(model, ids, positions, rows, attends):
        tokens.append(ids.shape[1])
        logits = real(model, ids, positions, rows, attends)
        kept.append(sum(layers[0].keys.shape[1] for layers in attends.store.values()))
        return logits

    monkeypatch.setattr(packed, "forward", watched)
    small = changed(llama, limits=memory.Limits(128, 16))
    prompts = [
        DEMOS + OTHER[: k % 15] + [subject] * 30 + [k % 250, k // 250]
        for subject in range(12)
        for k in range(30)
    ]
    longest = max(map(len, prompts))
    engines.score(small, prompts, [[[1], [2, 3]]] * len(prompts), silent)
    assert max(tokens) <= 128
    assert max(kept) <= 128 + longest
    tokens.clear()
    kept.clear()
    engines.generate(small, prompts, 3, silent)
    assert max(tokens) <= 128
    assert max(kept) <= memory.WAVE * 128 + longest


@pytest.mark.skipif(not PEAK.exists(), reason="needs Linux's record of the peak")
def test_memory_does_not_grow_with_the_prompts(llama):
    small = changed(llama, limits=memory.Limits(512, 64))

    def peak(prompts: int) -> int:
        """Most bytes that the process held while it scored prompts of 100 tokens."""
        asked = [[k % 250, k // 250, *range(98)] for k in range(prompts)]
        PEAK.write_text("5")  # forget the peak so far
        engines.score(small, asked, [[[1], [2]]] * prompts, silent)
        status = (PEAK.parent / "status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])

    peak(100)
    assert peak(1000) - peak(100) < 16 * 2**20  # the states of all of its tokens take 100 MB


def test_a_shared_prefix_is_computed_once(llama, monkeypatch):
    tokens = []
    real = packed.forward

    def watched(model, ids, *rest):
        tokens.append(ids.shape[1])
        return real(model, ids, *rest)

    monkeypatch.setattr(packed, "forward", watched)
    engines.score(llama, [[*DEMOS, k] for k in range(20)], [[[1], [2]]] * 20, silent)
    assert sum(tokens) == len(DEMOS) + 20


def test_finished_rows_leave_the_batch(llama, monkeypatch):
    rows = []
    real = packed.forward

    def watched(model, ids, positions, where, attends):
        if isinstance(attends, decoding.Step):
            rows.append(ids.shape[1])
        return real(model, ids, positions, where, attends)

    monkeypatch.setattr(packed, "forward", watched)
    endless = llama._replace(eos=frozenset())
    engines.generate(endless, PROMPTS[:4], [1, 3, 3, 5], silent)
    assert rows == [3, 3, 1, 1]


def test_bf16_stays_near_transformers(llama):
    folder = Path(llama.tokenizer.name_or_path)
    half = engines.load(folder, EngineConfig(dtype="bfloat16", device="cpu", threads=1))
    assert half.runner.packed
    exact = engines.score(llama, PROMPTS, LABELS, silent)
    for row, truth in zip(engines.score(half, PROMPTS, LABELS, silent), exact, strict=True):
        assert row == pytest.approx(truth, abs=1.0)
    assert half.runner.model.dtype == torch.bfloat16


@pytest.mark.gpu
def test_a_gpu_gives_what_the_cpu_gives(llama):
    folder = Path(llama.tokenizer.name_or_path)
    there = engines.load(folder, EngineConfig(dtype="float32", device="cuda"))
    assert there.packed
    scores = engines.score(llama, PROMPTS, LABELS, silent)
    for row, truth in zip(engines.score(there, PROMPTS, LABELS, silent), scores, strict=True):
        assert row == pytest.approx(truth, abs=1e-4)
    replies = engines.generate(there, PROMPTS, 5, silent)
    assert replies == engines.generate(llama, PROMPTS, 5, silent)


@pytest.mark.parametrize("count", [0, 3])
def test_a_prompt_that_does_not_fit_is_named(llama, count):
    short = llama._replace(context=80)
    prompts = [OTHER, DEMOS + OTHER[: 13 - count]]
    with pytest.raises(ValueError, match=r"prompt 1 has .* tokens.* 8[0-9].*context is 80"):
        engines.generate(short, prompts, count, silent)
    with pytest.raises(ValueError, match="prompt 1"):
        engines.score(short, prompts, [[[1]], [[1] * (1 + count)]], silent)
    fits = [prompts[0], prompts[1][: 80 - count]]
    assert len(engines.generate(short, fits, count, silent)) == 2


def test_prompts_and_labels_without_tokens_are_refused(llama):
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        engines.score(llama, [[1], []], [[[1]], [[1]]], silent)
    with pytest.raises(ValueError, match="prompt 0 has a label without tokens"):
        engines.score(llama, [[1]], [[[1], []]], silent)


@pytest.mark.parametrize("path", ["packed", "plain"])
def test_nan_is_an_error_of_its_own(tiny_model, path):
    broken = changed(engines.load(tiny_model, FP32), packed=path == "packed")
    broken.runner.model.model.norm.weight[3] = torch.nan
    if path == "plain":
        broken.runner.model.set_attn_implementation("sdpa")
    with pytest.raises(engines.NonFiniteLogitsError):
        engines.score(broken, [[1, 2]], [[[1]]], silent)
    if path == "packed":
        with pytest.raises(engines.NonFiniteLogitsError):
            engines.generate(broken, [[1, 2]], 2, silent)


def test_progress_counts_prompts_and_ends_at_all(llama):
    for run in (
        lambda r: engines.score(changed(llama, limits=memory.Limits(64, 16)), PROMPTS, LABELS, r),
        lambda r: engines.generate(changed(llama, limits=memory.Limits(64, 4)), PROMPTS, 2, r),
    ):
        seen: list[tuple[int, int]] = []
        run(lambda done, total, seen=seen: seen.append((done, total)))
        assert seen == sorted(seen)
        assert seen[-1] == (len(PROMPTS), len(PROMPTS))
        assert len(seen) > 2


def test_latency_is_seconds_per_prompt(llama):
    assert all(s > 0 for s in engines.latency(llama, PROMPTS[:3], LABELS[:3]))
    assert len(engines.latency(llama, PROMPTS[:3], None, 2)) == 3


def test_both_configs_name_end_of_sequence_tokens(tmp_path):
    folder = write_tiny_model(tmp_path, eos_token_id=5)
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 9], "temperature": 0.1}')
    loaded = engines.load(folder, FP32)
    assert loaded.eos == {5, 7, 9}
    assert loaded.runner.model.generation_config.temperature in (None, 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_named(tiny_model):
    with pytest.raises(ValueError, match=r"engine\.device=cuda"):
        engines.load(tiny_model, EngineConfig(device="cuda"))


def test_long_runs_are_cut_to_the_budget(llama):
    shared = logprobs.plan([tuple(range(200)) * 5], memory.Limits(90, 16))
    assert max(len(segment.tokens) for segment in shared.segments) == 90


def test_lanes_share_out_the_work_and_give_the_same(llama, monkeypatch):
    alone = engines.score(llama, PROMPTS, LABELS, silent)
    sizes: list[int] = []
    lane = logprobs._lane

    def counted(
        model: Any, wholes: Any, beginnings: Any, held: Any, limits: Any, report: Any
    ) -> Any:
        sizes.append(len(wholes))
        assert (torch.get_num_threads(), limits.tokens) == (1, 48)
        return lane(model, wholes, beginnings, held, limits, report)

    monkeypatch.setattr(logprobs, "_lane", counted)
    monkeypatch.setattr(lanes, "LANE", 48)
    done: list[int] = []
    torch.set_num_threads(2)
    try:
        two = changed(llama, limits=memory.Limits(96, 100))
        together = engines.score(two, PROMPTS, LABELS, lambda items, _: done.append(items))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert len(sizes) == 2
    assert min(sizes) > 0
    assert done == sorted(done)
    assert done[-1] == len(PROMPTS)
    for row, other in zip(together, alone, strict=True):
        assert row == pytest.approx(other, abs=1e-4)
