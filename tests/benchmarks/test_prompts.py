"""Chat turns as text: the forms against expectations written by hand, and their laws."""

from dataclasses import replace
from pathlib import Path

import pytest
from paper_root import write_root
from tiny import byte_tokenizer

from ptsearch.benchmarks import (
    Benchmark,
    Sample,
    Scenario,
    Turn,
    adversarial,
    chat,
    fairness,
    pocket,
    prompts,
    sources,
)
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import PROMPTS, BenchmarksConfig
from ptsearch.evaluation.fit import without_last_demo
from ptsearch.models.prompting import Prompter

ZERO_SHOT = chat.zero_shot("Answer.", "Is it?")
FEW_SHOT = chat.few_shot("Answer.", [("Was it?", "yes"), ("Can it?", "no")], "Is it?")


def of(name: str, prompt: str | tuple[Turn, ...], demos: tuple[tuple[int, int], ...]) -> Benchmark:
    sample = Sample("s/0", "item", "s", prompt, Question(("no", "yes")), gold=0, demos=demos)
    return Benchmark(name, "file", 1, {"s": Scenario("s", "s", lead="")}, (sample,), {})


def text(name: str, form: str, turns: tuple[Turn, ...]) -> str:
    prompt = prompts.rendered(of(name, turns, ()), form).samples[0].prompt
    assert isinstance(prompt, str)
    return prompt


def test_raw_by_hand() -> None:
    assert text("ethics", "raw", ZERO_SHOT) == (
        "You are a helpful assistant.\n\nUser: Answer.\nIs it?\nAssistant:"
    )
    assert text("ethics", "raw", FEW_SHOT) == (
        "You are a helpful, pattern-following assistant.\n\n"
        "User: Answer.\nAssistant: Sure, I'd be happy to!\n\n"
        "User: Was it?\nAssistant: Yes\n\n"
        "User: Can it?\nAssistant: No\n\n"
        "User: Is it?\nAssistant:"
    )


def test_a_system_message_replaces_the_opening_of_llama_2() -> None:
    assert text("ethics", "ct_llama2", ZERO_SHOT) == (
        "You are a helpful assistant.Answer.\nIs it?[/INST]"
    )
    assert text("ood", "ct_llama2", FEW_SHOT) == (
        "You are a helpful, pattern-following assistant.Answer."
        "[/INST] Sure, I'd be happy to! </s><s>"
        "[INST] Was it? [/INST] Yes </s><s>"
        "[INST] Can it? [/INST] No </s><s>"
        "[INST] Is it? [/INST]"
    )


def test_without_a_system_message_llama_2_has_its_default() -> None:
    task = adversarial.TASKS["sst2"]
    said = task.instruction
    assert text("adversarial", "ct_llama2", adversarial.prompt(task, "sentence: Fine.")) == (
        "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as "
        "helpfully as possible, while being safe. Your answers should not include any harmful, "
        "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
        "responses are socially unbiased and positive in nature.\n\nIf a question does not make "
        "any sense, or is not factually coherent, explain why instead of answering something not "
        "correct. If you don't know the answer to a question, please don't share false "
        "information.\n<</SYS>>\n\n"
        f"{said}\nsentence: I'm very happy today!!"
        "[/INST] positive </s><s>"
        f"[INST] {said}\nsentence: The food tastes terrible!! [/INST] negative </s><s>"
        f"[INST] {said}\nsentence: Fine. [/INST]"
    )


def test_of_several_system_messages_only_the_last_survives() -> None:
    turns = (Turn("system", "One."), Turn("system", "Two."), Turn("user", "Is it?"))
    assert text("ethics", "ct_llama2", turns) == "Two.Is it?[/INST]"


def test_fairness_demonstrations_never_reached_llama_2() -> None:
    asked = fairness.prompt("A person.", [("Someone rich.", "yes"), ("Someone else.", "no")])
    assert text("fairness", "ct_llama2", asked) == "NoA person.[/INST]"
    assert "Someone rich." in text("fairness", "raw", asked)


@pytest.mark.parametrize("form", PROMPTS)
def test_plain_text_stays_as_it_is(form: str) -> None:
    plain = pocket.mmlu()
    assert prompts.rendered(plain, form) == plain


def test_the_digest_tells_the_forms_apart() -> None:
    turns = of("ood", FEW_SHOT, chat.demo_turns(2))
    assert len({prompts.rendered(turns, form).digest for form in PROMPTS}) == len(PROMPTS)
    assert set(PROMPTS) == {"chat", *prompts.PIECES}


@pytest.mark.parametrize("form", ["raw", "ct_llama2"])
def test_dropping_a_demonstration_and_rendering_commute(form: str) -> None:
    whole = of("ood", FEW_SHOT, chat.demo_turns(2))
    left = prompts.rendered(whole, form).samples[0]
    right = whole
    for _ in range(2):
        left = without_last_demo(left)
        right = replace(right, samples=tuple(map(without_last_demo, right.samples)))
        assert left == prompts.rendered(right, form).samples[0]


def test_what_opens_a_llama_2_conversation_is_not_dropped() -> None:
    asked = adversarial.prompt(adversarial.TASKS["sst2"], "sentence: Fine.")
    whole = of("adversarial", asked, chat.demo_turns(2, first=0))
    sample = prompts.rendered(whole, "ct_llama2").samples[0]
    assert len(sample.demos) == 1
    shorter = replace(whole, samples=tuple(map(without_last_demo, whole.samples)))
    assert without_last_demo(sample).prompt == (
        prompts.rendered(shorter, "ct_llama2").samples[0].prompt
    )
    assert len(prompts.rendered(whole, "raw").samples[0].demos) == 2


def test_raw_replies_end_before_the_next_question() -> None:
    scenario = prompts.rendered(of("ood", FEW_SHOT, ()), "raw").scenarios["s"]
    assert (scenario.lead, scenario.stop) == (" ", "\nUser:")


@pytest.mark.parametrize("form", PROMPTS)
def test_a_prompt_tells_whether_it_was_made_of_turns(form: str) -> None:
    for turns in (ZERO_SHOT, FEW_SHOT):
        sample = prompts.rendered(of("ethics", turns, ()), form).samples[0]
        assert prompts.was_turns(sample.prompt, form)
    for sample in prompts.rendered(pocket.ethics(), form).samples:
        assert not prompts.was_turns(sample.prompt, form)


def test_a_tokenizer_without_template_names_the_way_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template: choose benchmarks\.prompt=raw"):
        Prompter(tokenizer).prompt(ZERO_SHOT)
    assert Prompter(tokenizer).prompt(text("ethics", "raw", ZERO_SHOT))


def test_the_config_reaches_every_prompt(tmp_path: Path) -> None:
    config = BenchmarksConfig(name="paper", root=str(write_root(tmp_path)), prompt="raw")
    for benchmark in sources.load(config, tmp_path / "cache"):
        assert all(isinstance(sample.prompt, str) for sample in benchmark.samples)
        assert benchmark.samples[0].prompt[-1:] == ":"  # "Assistant:", in MMLU "Answer:"
    with pytest.raises(ValueError, match=r"benchmarks\.prompt must be one of chat, raw, ct_llama2"):
        BenchmarksConfig(prompt="vicuna")
