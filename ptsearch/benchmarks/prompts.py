"""Chat turns as plain text: what `benchmarks.prompt` chooses.

`chat` leaves the turns to the tokenizer's own chat template. `raw` is for base models:

    You are a helpful assistant.

    User: first question
    Assistant: its answer

    User: the question
    Assistant:

`ct_llama2` is what DecodingTrust and Decoding Compressed Trust sent to Llama-2 (FastChat's template
of 2023): a system message replaces `<s>[INST] <<SYS>>` and all, only the last one counts, `<s>` is
written out, and no space stands before the first `[/INST]`. Prompts that are plain text already
stay as they are in every form.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from ptsearch.benchmarks import Benchmark, Prompt, Sample, Scenario, Turn

RAW_LEAD, RAW_STOP = " ", "\nUser:"
LLAMA2_DEFAULT = (
    "<s>[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant. Always answer as "
    "helpfully as possible, while being safe. Your answers should not include any harmful, "
    "unethical, racist, sexist, toxic, dangerous, or illegal content. Please ensure that your "
    "responses are socially unbiased and positive in nature.\n\nIf a question does not make any "
    "sense, or is not factually coherent, explain why instead of answering something not correct. "
    "If you don't know the answer to a question, please don't share false information.\n"
    "<</SYS>>\n\n"
)
LLAMA2_ROLES = {"user": "[INST]", "assistant": "[/INST]"}
LLAMA2_ENDS = (" ", " </s><s>")  # of every second message


def rendered(benchmark: Benchmark, form: str) -> Benchmark:
    """The benchmark with its turns as text in the form; demonstrations stay droppable.

    A raw reply ends where the model would go on with a question of its own, and a label in choice
    mode follows a space.
    """
    if form == "chat":
        return benchmark
    samples = tuple(_rendered_sample(benchmark, sample, form) for sample in benchmark.samples)
    changed = {old.scenario for old in benchmark.samples if not isinstance(old.prompt, str)}
    scenarios = {
        name: _rendered_scenario(scenario, form) if name in changed else scenario
        for name, scenario in benchmark.scenarios.items()
    }
    return replace(benchmark, samples=samples, scenarios=scenarios)


def raw(turns: Sequence[Turn]) -> list[str]:
    """One piece of text a turn; together they are the prompt."""
    forms = {"system": "{}\n\n", "user": "User: {}\nAssistant:", "assistant": " {}\n\n"}
    return [forms[turn.role].replace("{}", turn.content) for turn in turns]


def ct_llama2(turns: Sequence[Turn]) -> list[str]:
    """One piece of text a turn, empty for system turns; together they are the prompt."""
    system = [turn.content for turn in turns if turn.role == "system"] or [LLAMA2_DEFAULT]
    pieces, said = [], 0
    for turn in turns:
        if turn.role == "system":
            pieces.append("")
            continue
        if said == 0:
            pieces.append(system[-1] + turn.content)
        else:
            pieces.append(f"{LLAMA2_ROLES[turn.role]} {turn.content}{LLAMA2_ENDS[said % 2]}")
        said += 1
    return [*pieces[:-1], pieces[-1] + LLAMA2_ROLES["assistant"]]


PIECES = {"raw": raw, "ct_llama2": ct_llama2}


def as_text(turns: Sequence[Turn], form: str) -> str:
    """The turns as one prompt in a form other than `chat`."""
    return "".join(PIECES[form](turns))


def was_turns(prompt: Prompt, form: str) -> bool:
    """Whether a rendered prompt was made of turns: text then ends as the form ends a question."""
    if not isinstance(prompt, str):
        return True
    return form in PIECES and prompt.endswith(as_text([Turn("user", "\0")], form).split("\0")[1])


def _rendered_sample(benchmark: Benchmark, sample: Sample, form: str) -> Sample:
    if isinstance(sample.prompt, str):
        return sample
    turns, demos = sample.prompt, sample.demos
    if form == "ct_llama2":
        if benchmark.name == "fairness":
            # Published as system messages, each of which overwrote the one before.
            turns = (*(Turn("system", turn.content) for turn in turns[:-1]), turns[-1])
            demos = ()
        # What opens the conversation has another form than what follows: it cannot be cut out.
        demos = tuple(
            (start, end) for start, end in demos if any(t.role != "system" for t in turns[:start])
        )
    pieces = PIECES[form](turns)
    at = [0, *accumulate(map(len, pieces))]
    spans = tuple((at[start], at[end]) for start, end in demos)
    return replace(sample, prompt="".join(pieces), demos=spans)


def _rendered_scenario(scenario: Scenario, form: str) -> Scenario:
    def text(prompt: Prompt) -> Prompt:
        return prompt if isinstance(prompt, str) else as_text(prompt, form)

    calibration = {key: tuple(map(text, asked)) for key, asked in scenario.calibration.items()}
    scenario = replace(scenario, calibration=calibration)
    if form == "raw":
        return replace(scenario, lead=RAW_LEAD, stop=scenario.stop or RAW_STOP)
    return scenario


TurnForm = frozenset[str]
FOLD, ALTERNATE = "fold", "alternate"  # system text in user turns | no two turns of one role


def formed(turns: Sequence[Turn], form: TurnForm) -> list[Turn]:
    """The turns in a form that more chat templates take, contents joined by an empty line."""
    if FOLD in form:
        turns = [Turn("user", turn.content) if turn.role == "system" else turn for turn in turns]
    if not form:
        return list(turns)
    groups = groupby(turns, key=lambda turn: turn.role)
    return [Turn(role, "\n\n".join(turn.content for turn in group)) for role, group in groups]
