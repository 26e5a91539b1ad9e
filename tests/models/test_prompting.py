"""Labels are tokenized with their prompts; templates of other models; one beginning of text."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

from ptsearch.benchmarks import Turn
from ptsearch.benchmarks.prompts import ALTERNATE, FOLD, formed
from ptsearch.models import loading, prompting
from ptsearch.models.prompting import Prompter

TEXT = ["Q: 3 + 4 = 7\nA: yes", "Answer: A", "Answer: B", "Was that wrong? not wrong", "A: no A: A"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING = CHATML + (
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}"
)
FORCED = CHATML + "<think>\n"  # reasons before every reply, and nothing turns it off
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "<start>{{ m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
SILENT = (
    "{% for m in messages if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def trained(tokenizer: Tokenizer, byte_level: bool = False) -> Tokenizer:
    alphabet = pre_tokenizers.ByteLevel.alphabet() if byte_level else []
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<start>", "<end>"]
    trainer = BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXT * 4, trainer)
    return tokenizer


def with_bos(tokenizer: Tokenizer, last: str = "") -> PreTrainedTokenizerFast:
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<s> $A {last}".strip(), special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")


def llama_like() -> PreTrainedTokenizerFast:
    """SentencePiece's dummy prefix: every text begins with a space of its own."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Metaspace()
    return with_bos(trained(tokenizer))


def mistral_like() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return with_bos(trained(tokenizer))


def gemma_like() -> PreTrainedTokenizerFast:
    """Without a dummy prefix; pieces reach over words, so a label merges with what is before it."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Replace("▁", " ")
    return with_bos(trained(tokenizer))


def qwen_like() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=trained(tokenizer, True), eos_token="</s>")


def sealed() -> PreTrainedTokenizerFast:
    """An end-of-sequence token closes every text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return with_bos(trained(tokenizer, True), "</s>")


KINDS = [llama_like, mistral_like, gemma_like, qwen_like, sealed]
prompters = {kind.__name__: Prompter(kind()) for kind in KINDS}


@given(
    st.sampled_from(list(prompters)),
    st.text("AQ: =3+no\n", min_size=1, max_size=12),
    st.lists(st.sampled_from([" A", "A", " B", "7", " not wrong", " wrong", ": A"]), min_size=1),
)
def test_a_label_is_what_follows_its_prompt(kind: str, prompt: str, labels: list[str]) -> None:
    prompter = prompters[kind]
    choices = prompter.choices(prompt, labels)
    alone = prompter.prompt(prompt)
    assert choices.prompt == alone[: len(choices.prompt)]
    assert choices.merged == (choices.prompt != alone)
    for label, ids in zip(labels, choices.labels, strict=True):
        assert choices.prompt + ids == prompter.prompt(prompt + label)


@pytest.mark.parametrize("kind", [llama_like, mistral_like])
def test_no_space_comes_between_prompt_and_label(kind: Callable) -> None:
    tokenizer = kind()
    choices = Prompter(tokenizer).choices("3 + 4 = ", ["7", "8"])
    seven = tokenizer.convert_ids_to_tokens(choices.labels[0])
    assert "".join(tokenizer.convert_ids_to_tokens(choices.prompt) + seven).endswith("=▁7")
    apart = tokenizer.convert_ids_to_tokens(tokenizer("7", add_special_tokens=False).input_ids)
    assert apart[0].startswith("▁")  # what stood between them before


def test_where_the_join_merges_scoring_begins_before_it() -> None:
    tokenizer = prompters["gemma_like"].tokenizer
    choices = prompters["gemma_like"].choices("Answer:", [" A", " B"])
    assert choices.merged
    texts = [tokenizer.decode(ids) for ids in choices.labels]
    assert [text.endswith(label) for text, label in zip(texts, "AB", strict=True)] == [True, True]


@pytest.mark.parametrize("name", list(prompters))
def test_a_text_begins_with_what_the_tokenizer_adds_once_and_ends_open(name: str) -> None:
    prompter = prompters[name]
    ids = prompter.prompt("Answer: A")
    choices = prompter.choices("Answer:", [" A"])
    for each in (ids, choices.prompt + choices.labels[0]):
        assert each.count(1) == (0 if name == "qwen_like" else 1)
        assert 2 not in each


def chat(kind: Callable, template: str, **arguments: object) -> Prompter:
    tokenizer = kind()
    tokenizer.chat_template = template
    return Prompter(tokenizer, arguments)


TURNS = (("system", "Be kind."), ("user", "One?"), ("user", "Two?"))


@pytest.mark.parametrize("kind", [llama_like, gemma_like])
def test_a_template_that_begins_with_the_first_token_gives_one(kind: Callable) -> None:
    prompter = chat(kind, GEMMA)
    for ids in (prompter.prompt(TURNS), prompter.choices(TURNS, ["A", "B"]).prompt):
        assert ids.count(1) == 1
        assert ids[0] == 1


def test_a_template_that_refuses_system_turns_gets_them_in_the_users() -> None:
    prompter = chat(gemma_like, GEMMA)
    assert prompter.form == {FOLD, ALTERNATE}
    assert "<start>user\nBe kind.\n\nOne?\n\nTwo?<end>" in prompter.conversation(TURNS)
    with pytest.raises(ValueError, match=r"refuses turns of assistant, user .*must alternate"):
        prompter.conversation([("assistant", "x"), ("user", "y")])


def test_a_template_that_drops_system_turns_gets_them_in_the_users() -> None:
    prompter = chat(qwen_like, SILENT)
    assert prompter.form == {FOLD}
    assert prompter.conversation(TURNS) == "<user>Be kind.\n\nOne?\n\nTwo?<assistant>"


def test_a_template_that_takes_all_turns_gets_them_as_they_are() -> None:
    prompter = chat(qwen_like, CHATML)
    assert prompter.form == frozenset()
    assert prompter.conversation(TURNS).count("<|im_start|>user") == 2
    assert formed([Turn(*turn) for turn in TURNS], prompter.form) == [Turn(*t) for t in TURNS]


def test_thinking_is_off_where_there_is_a_switch() -> None:
    off, on = chat(qwen_like, THINKING), chat(qwen_like, THINKING, enable_thinking=True)
    assert off.conversation(TURNS[1:2]).endswith("<think>\n\n</think>\n\n")
    assert on.conversation(TURNS[1:2]).endswith("assistant\n")
    assert not off.thinks
    assert chat(qwen_like, CHATML).template_arguments == {}


def test_a_model_whose_thinking_cannot_be_turned_off_is_known() -> None:
    assert chat(qwen_like, FORCED).thinks
    assert not chat(qwen_like, CHATML).thinks


def test_a_checkpoint_that_has_only_a_sentencepiece_model(tiny_model: Path, tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20), model_prefix=str(tmp_path / "tokenizer"), vocab_size=70,
        model_type="bpe", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    shutil.copy(tiny_model / "config.json", tmp_path)
    config = '{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}'
    (tmp_path / "tokenizer_config.json").write_text(config)
    tokenizer = loading.load_tokenizer(tmp_path)
    choices = Prompter(tokenizer).choices("3 + 4 =", [" 7", " 8"])
    tokens = tokenizer.convert_ids_to_tokens(choices.prompt + choices.labels[0])
    assert tokens == ["<s>", *["▁3", "▁+", "▁4", "▁=", "▁7"]]


def test_labels_of_two_hundred_characters() -> None:
    labels = [" " + "wrong " * 33 + end for end in ("A", "B")]
    choices = prompters["qwen_like"].choices("Answer:", labels)
    for label, ids in zip(labels, choices.labels, strict=True):
        assert prompters["qwen_like"].tokenizer.decode(ids) == label


ENDLESS = "{% set x = range(99999) %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}"


def test_a_template_that_does_not_end(monkeypatch) -> None:
    monkeypatch.setattr(prompting, "TEMPLATE_SECONDS", 0.3)
    tokenizer = qwen_like()
    tokenizer.chat_template = ENDLESS
    for _ in range(2):  # and the thread can go on
        with pytest.raises(ValueError, match=r"chat template took longer than 0\.3 s"):
            Prompter(tokenizer).prompt([("user", "Is it?")])
    tokenizer.chat_template = CHATML
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(Prompter(tokenizer).prompt, [("user", "Is it?")]).result(10)


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 / 0 }}",
        "{{ messages[9].content.x.y }}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_a_template_that_fails(template) -> None:
    tokenizer = qwen_like()
    tokenizer.chat_template = template
    with pytest.raises(ValueError, match="chat template refuses turns of user"):
        Prompter(tokenizer).prompt([("user", "Is it?")])
