"""llama.cpp gives what transformers gives, whatever is shared, cached or asked together."""

import importlib.util
import random

import pytest

from ptsearch import engine as engines
from ptsearch.config import BuildConfig, Config, EngineConfig
from ptsearch.engine.llamacpp import CELLS, ordered
from ptsearch.evaluation import early_check
from ptsearch.testing.tiny_model import write_tiny_model

needs_llama = pytest.mark.skipif(
    importlib.util.find_spec("llama_cpp") is None, reason="needs pip install 'ptsearch[llamacpp]'"
)

SETTINGS = EngineConfig(name="llamacpp", dtype="float32", threads=1)
NOISE = 0.03  # nats: llama.cpp keeps keys and values in 16 bits
PROMPTS = [[5, 6, 7], [5, 6], [5, 6, 7], list(range(40)), [1]] + [[9, k] for k in range(50)]
LABELS = [[[10], [11, 12, 13], [11, 14]][: 2 + k % 2] for k in range(len(PROMPTS))]


def silent(done: int, total: int) -> None:
    pass


def both(folder, prompts=PROMPTS, labels=LABELS):
    with engines.opened(folder, SETTINGS) as llama:
        found = engines.score(llama, prompts, labels, silent)
    with engines.opened(folder, EngineConfig(dtype="float32", device="cpu")) as engine:
        return found, engines.score(engine, prompts, labels, silent)


def assert_close(found, expected):
    assert len(found) == len(expected)
    for row, true in zip(found, expected, strict=True):
        assert row == pytest.approx(true, abs=NOISE)


@needs_llama
@pytest.mark.parametrize("kind", ["Llama", "Mistral", "Qwen2", "Qwen3"])
def test_labels_have_the_log_probabilities_that_transformers_gives(kind, tmp_path):
    sharp = {"initializer_range": 0.3, "tie_word_embeddings": kind < "M"}  # attention is no mean
    assert_close(*both(write_tiny_model(tmp_path / kind, kind, **sharp)))


@needs_llama
def test_a_prompt_beyond_the_first_cells_is_scored(tiny_model):
    long = [k % 200 for k in range(CELLS + 100)]
    assert_close(*both(tiny_model, [long, [3, 4], long[:-1]], [[[1], [2, 3]]] * 3))


@needs_llama
def test_what_is_shared_or_kept_changes_no_value(tiny_model):
    rng = random.Random(0)
    stems = [[rng.randrange(200) for _ in range(rng.choice([1, 30, 700]))] for _ in range(3)]
    prompts = [rng.choice(stems) + [rng.randrange(3) for _ in range(k % 4)] for k in range(40)]
    labels = [[[7], [8, 9]]] * len(prompts)
    with engines.opened(tiny_model, SETTINGS) as engine:
        alone = engine._replace(runner=engine.runner.uncached())
        pairs = zip(prompts, labels, strict=True)
        expected = [engines.score(alone, [p], [own], silent)[0] for p, own in pairs]
        for _ in range(2):
            assert_close(engines.score(engine, prompts, labels, silent), expected)
        for prompt, row in zip(prompts[::-1], expected[::-1], strict=True):
            assert_close(engines.score(engine, [prompt], labels[:1], silent), [row])


@needs_llama
def test_replies_are_those_of_transformers(tiny_model):
    new = [k % 9 for k in range(len(PROMPTS))]
    with engines.opened(tiny_model, SETTINGS) as llama:
        first = engines.generate(llama, PROMPTS, new, silent)
        assert engines.generate(llama, PROMPTS, new, silent) == first
    with engines.opened(tiny_model, EngineConfig(dtype="float32", device="cpu")) as engine:
        assert engines.generate(engine, PROMPTS, new, silent) == first


@needs_llama
def test_a_reply_ends_before_the_end_of_sequence(tiny_model):
    with engines.opened(tiny_model, SETTINGS) as engine:
        reply = engines.generate(engine, [[5, 6, 7]], 6, silent)[0]
        ending = engine._replace(eos=frozenset({reply[3]}))
        cut = engines.generate(ending, [[5, 6, 7], [5, 6]], 6, silent)[0]
    assert cut == reply[: reply.index(reply[3])]


def test_the_order_begins_where_the_trunk_ends_and_is_depth_first():
    assert ordered([(1,), (2, 9), (2, 3, 4), (2, 3)], (2, 3, 5)) == [
        (2, 3),
        (2, 3, 4),
        (2, 9),
        (1,),
    ]


def test_without_the_package_one_line_says_what_to_install_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = Config(engine=EngineConfig(name="llamacpp"), build=BuildConfig())
    with pytest.raises(ValueError, match=r"^engine=llamacpp needs .* 'ptsearch\[llamacpp\]'$"):
        early_check.check(config)


def test_halves_are_for_llama_cpp_alone():
    config = Config(engine=EngineConfig(dtype="float16"), build=BuildConfig())
    with pytest.raises(ValueError, match=r"engine.dtype=float16 is llama.cpp's alone"):
        early_check.check(config)
