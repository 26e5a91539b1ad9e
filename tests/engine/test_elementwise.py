"""Norms, position encodings and softmax in one pass, against torch and transformers."""

import sys
import threading

import pytest
import torch
from transformers.models.gemma import modeling_gemma
from transformers.models.llama import modeling_llama

from ptsearch.engine import elementwise


@pytest.fixture(autouse=True)
def one_core():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.inference_mode():
        yield
    torch.set_num_threads(threads)


def numbers(*shape: int, spread: float = 1.0) -> torch.Tensor:
    return (spread * torch.randn(shape, generator=torch.Generator().manual_seed(0))).bfloat16()


def differing(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Share of numbers that are not the same; none by more than one bit."""
    torch.testing.assert_close(found, expected, rtol=2**-7, atol=0)
    return (found != expected).float().mean().item()


@pytest.mark.parametrize("keys", [1, 31, 64, 110, 160])
def test_softmax(keys) -> None:
    scores = numbers(3, 50, keys, spread=4)
    seen = torch.arange(keys) <= torch.arange(50)[:, None]
    scores.masked_fill_(~seen, -torch.inf)
    found = scores.clone()
    elementwise.softmax_(found)
    assert differing(found, scores.softmax(-1)) < 1e-3
    assert (found[:, ~seen] == 0).all()


def test_softmax_far_apart() -> None:
    scores = torch.tensor([[[0.0, -80, -86, -90, -3e38], [3e38, 3e38, 0, 0, 0]]]).bfloat16()
    found = scores.clone()
    elementwise.softmax_(found)
    torch.testing.assert_close(found, scores.softmax(-1), rtol=2**-7, atol=1e-37)


@pytest.mark.parametrize("code", [0x7FC0, 0xFFC0, 0x7F80])
def test_nan_of_either_sign_and_inf_become_nan(code) -> None:
    scores = numbers(1, 2, 40)
    scores.view(torch.uint16)[0, 1, 3] = code
    elementwise.softmax_(scores)
    assert scores[0, 1].isnan().all()
    assert scores[0, 0].isfinite().all()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32])  # a kernel's, and torch's
@pytest.mark.parametrize("keys", [1, 40, 64])
def test_softmax_over_what_is_seen(keys, kind) -> None:
    scores = numbers(4, 30, keys, spread=20).to(kind)
    first = torch.randint(0, keys, (60,), generator=torch.Generator().manual_seed(1))
    end = torch.minimum(first + 1 + torch.arange(60), torch.tensor(keys))
    key = torch.arange(keys)
    unseen = ((key < first[:, None]) | (key >= end[:, None])).view(2, 30, keys).repeat(2, 1, 1)
    expected = (scores.float() * 0.1).masked_fill(unseen, -torch.inf).softmax(-1)
    elementwise.softmax_seen_(scores, first, end, 0.1)
    assert (scores[unseen] == 0).all()
    torch.testing.assert_close(scores.float(), expected, rtol=2**-7, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 2, 19])
def test_what_is_read_off_logits(rows) -> None:
    logits = 8 * torch.randn(3001, rows, generator=torch.Generator().manual_seed(0))
    logits[:, 0] = -torch.inf
    logits[5:7, 0] = 3.0
    logits[17] += 40
    for given in (logits.mT, logits.mT.contiguous(), logits.mT.double()):
        found, expected = elementwise.logsumexp(given), given.double().logsumexp(-1)
        torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=2e-6)
        largest, token = elementwise.peaks(given)
        assert torch.equal(largest, given.max(-1).values)
        assert torch.equal(token, given.argmax(-1))


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_logits_that_are_not_finite_are_told(wrong) -> None:
    logits = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).mT
    logits[2, 100] = wrong
    assert elementwise.logsumexp(logits).isfinite().tolist() == [True, True, False, True]
    assert elementwise.peaks(logits)[0].isfinite().tolist() == [True, True, False, True]


def test_several_threads_are_torchs(monkeypatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr(elementwise.kernels, "softmax", None)
    monkeypatch.setattr(elementwise, "FEW", 2 * 3 * 40 - 1)
    scores = numbers(2, 3, 40)
    expected = scores.softmax(-1)
    elementwise.softmax_(scores)
    assert torch.equal(scores, expected)


def llama_norm(width: int) -> torch.nn.Module:
    norm = modeling_llama.LlamaRMSNorm(width, eps=1e-5).bfloat16()
    norm.weight.data = numbers(width).abs() + 0.5
    return norm


@pytest.mark.parametrize("shape", [(1, 300, 96), (1, 40, 4, 17)])
def test_norm(shape) -> None:
    whole = part_of_a_model(norm=llama_norm(shape[-1]))
    x = numbers(*shape, spread=3)
    expected = whole.norm(x)
    elementwise.swap(whole)
    assert isinstance(whole.norm, elementwise.Norm)
    assert differing(whole.norm(x), expected) < 1e-3


def test_a_norm_of_another_kind_stays() -> None:
    norm = modeling_gemma.GemmaRMSNorm(32).bfloat16()
    norm.weight.data = numbers(32)
    whole = part_of_a_model(norm=norm, other=torch.nn.LayerNorm(32).bfloat16())
    elementwise.swap(whole)
    assert whole.norm is norm
    assert type(whole.other) is torch.nn.LayerNorm


def part_of_a_model(**parts: torch.nn.Module) -> torch.nn.Module:
    whole = torch.nn.Module()
    whole.device, whole.dtype = torch.device("cpu"), torch.bfloat16
    for name, part in parts.items():
        setattr(whole, name, part)
    return whole


@pytest.fixture
def code(monkeypatch):
    """A module with a position encoding of its own, as transformers' models have."""
    module = type(sys)("code")
    monkeypatch.setitem(sys.modules, "code_of_a_model", module)
    layer = type("Layer", (torch.nn.Module,), {"__module__": "code_of_a_model"})
    return module, part_of_a_model(layer=layer())


def test_position_encoding(code) -> None:
    module, whole = code
    original = getattr(modeling_llama.apply_rotary_pos_emb, "__wrapped__", None)
    original = original or modeling_llama.apply_rotary_pos_emb
    module.apply_rotary_pos_emb = original
    elementwise.swap(whole)
    turn = module.apply_rotary_pos_emb
    assert turn is not original
    q, k = numbers(1, 70, 6, 32).transpose(1, 2), numbers(1, 70, 2, 32).transpose(1, 2)
    cos, sin = numbers(1, 70, 32).cos(), numbers(1, 70, 32).sin()
    for given in ((q, k, cos, sin), (q.float(), k.float(), cos.float(), sin.float())):
        for found, expected in zip(turn(*given), original(*given), strict=True):
            assert torch.equal(found, expected)
    two = [part.expand(2, *part.shape[1:]) for part in (q, k, cos, sin)]
    assert torch.equal(turn(*two)[0], original(*two)[0])
    elementwise.swap(whole)
    assert module.apply_rotary_pos_emb is turn  # once is enough


def test_a_position_encoding_of_another_kind_stays(code) -> None:
    module, whole = code

    def interleaved(q, k, cos, sin):
        turned = [torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2) for x in (q, k)]
        return q * cos + turned[0] * sin, k * cos + turned[1] * sin

    for other in (interleaved, lambda q: q):
        module.apply_rotary_pos_emb = other
        elementwise.swap(whole)
        assert module.apply_rotary_pos_emb is other


def test_lanes_may_run_at_once() -> None:
    scores = [numbers(4, 200, 64, spread=k + 1) for k in range(4)]
    expected = [part.softmax(-1) for part in scores]

    def run(part: torch.Tensor) -> None:
        torch.set_num_threads(1)
        elementwise.softmax_(part)

    with torch.inference_mode():
        lanes = [threading.Thread(target=run, args=(part,)) for part in scores]
        for lane in lanes:
            lane.start()
        for lane in lanes:
            lane.join()
    assert max(differing(*pair) for pair in zip(scores, expected, strict=True)) < 1e-3
