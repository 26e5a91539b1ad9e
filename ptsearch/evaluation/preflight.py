"""What a model's tokenizer, chat template and shapes mean, found in seconds before any work.

Every study begins with it; `+check=model` prints it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ptsearch.benchmarks import Benchmark, Sample, Scenario, Turn
from ptsearch.benchmarks.prompts import ALTERNATE, FOLD
from ptsearch.config import EngineConfig
from ptsearch.engine import context_of
from ptsearch.models import layers, loading, support
from ptsearch.models.base_model import BaseModel
from ptsearch.models.prompting import THINKING, Prompter, common_length
from ptsearch.pool import calibration
from ptsearch.shared import Report

GROUP_SIZES = (32, 64, 128, 256)
CHARACTERS = 20_000  # of plain English, whose tokens are counted
CHOSEN = 100  # prompts of a scenario whose labels are looked at
FORMS = {
    FOLD: "the chat template takes no system turn: its text goes into the first user turn",
    ALTERNATE: "the chat template wants turns to alternate: consecutive ones of a role are joined",
}


@dataclass(frozen=True)
class ModelCheck:
    """What was found; `notes` are what a reader of scores must know."""

    facts: dict[str, str] = field(default_factory=dict)  # in the order in which they are shown
    notes: list[str] = field(default_factory=list)
    tokens_per_byte: float = 0.0  # of plain English
    inputs: dict[str, int] = field(default_factory=dict)  # of each linear to quantize


def check(
    base: BaseModel,
    benchmarks: Sequence[Benchmark],
    settings: EngineConfig,
    template: Mapping[str, object],
    report: Report,
) -> ModelCheck:
    """ValueError: the model cannot be built, or a prompt cannot be rendered or is too long."""
    report("checking the model", 0, 1)
    tokenizer = loading.load_tokenizer(base.path, base.trust_remote_code)
    prompter = Prompter(tokenizer, template)
    model = support.checked(base.path, base.trust_remote_code)
    context, tied = context_of(model.config), getattr(model.config, "tie_word_embeddings", False)
    inputs = {name: part.in_features for name, part in layers.linears_of(model).items()}
    english = "\n".join(calibration.python_docs())[:CHARACTERS]
    per_byte = len(prompter.prompt(english)) / len(english.encode())
    facts = {
        "architecture": f"{type(model).__name__}, {len(layers.layers_of(model)[1])} layers",
        "output head": "tied to the embeddings" if tied else "of its own",
        "group sizes": _group_sizes(set(inputs.values())),
        "context": f"{context} tokens" if context else "no limit",
        "tokenizer": f"{len(tokenizer)} tokens, {1 / per_byte:.1f} bytes of English per token",
        "beginning of text": str(tokenizer.decode(prompter.first)) or "nothing is added",
    }
    notes = []
    if tokenizer.chat_template:
        facts["chat template"] = _about_template(prompter)
        notes += [text for form, text in FORMS.items() if form in prompter.form]
        notes += _about_thinking(prompter)
    for benchmark in benchmarks:
        longest, found = _about_prompts(prompter, benchmark)
        facts[f"prompts of {benchmark.name}"] = f"{longest} tokens at most"
        if context and longest > context and settings.too_long == "error":
            raise ValueError(
                f"prompts of {benchmark.name} have up to {longest} tokens, the model's context is "
                f"{context}: engine.too_long=drop leaves out demonstrations"
            )
        notes += found
    report("checking the model", 1, 1)
    return ModelCheck(facts, notes, per_byte, inputs)


def _group_sizes(inputs: Collection[int]) -> str:
    """Which of the usual group sizes divide the inputs of every linear."""
    sizes = [size for size in GROUP_SIZES if not any(width % size for width in inputs)]
    return f"{', '.join(map(str, sizes)) or 'none'} divide all inputs; -1 is one group per row"


def _about_template(prompter: Prompter) -> str:
    if not prompter.accepts([Turn("user", "?")]):
        return "refuses a user's turn: benchmarks.prompt=raw is needed"
    begins = prompter.conversation([("user", "?")]).startswith(prompter.tokenizer.bos_token or "\0")
    arguments = ", ".join(f"{k}={v}" for k, v in prompter.template_arguments.items())
    parts = [
        "system turns are " + ("folded into the user's" if FOLD in prompter.form else "taken"),
        "turns must alternate" if ALTERNATE in prompter.form else "",
        "begins with the beginning-of-text token" if begins else "",
        f"arguments: {arguments}" if arguments else "",
    ]
    return "; ".join(filter(None, parts))


def _about_thinking(prompter: Prompter) -> list[str]:
    if prompter.thinks:
        return [
            "the model reasons before it replies, and its chat template has no switch for it: "
            "labels are compared, and short replies cut, inside its reasoning"
        ]
    if prompter.template_arguments.get(THINKING) is False:
        return ["thinking is turned off (benchmarks.template={enable_thinking: true} keeps it)"]
    return []


def _about_prompts(prompter: Prompter, benchmark: Benchmark) -> tuple[int, list[str]]:
    """(tokens of the longest prompt, notes about labels); every shape of prompt is rendered."""
    prompts = {_shape(sample): sample for sample in sorted(benchmark.samples, key=_characters)}
    try:
        lengths = [len(prompter.prompt(sample.prompt)) for sample in prompts.values()]
    except ValueError as error:
        raise ValueError(f"{benchmark.name}: {error}") from None
    notes: list[str] = []
    for name, scenario in benchmark.scenarios.items():
        samples = [sample for sample in benchmark.samples if sample.scenario == name]
        if scenario.mode == "choice":
            notes += _about_labels(prompter, f"{benchmark.name}/{name}", scenario, samples[:CHOSEN])
    return max(lengths, default=0), notes


def _shape(sample: Sample) -> tuple[str, ...]:
    roles = () if isinstance(sample.prompt, str) else tuple(turn.role for turn in sample.prompt)
    return sample.scenario, *roles


def _characters(sample: Sample) -> int:
    texts = (
        [sample.prompt] if isinstance(sample.prompt, str) else [t.content for t in sample.prompt]
    )
    return sum(map(len, texts))


def _about_labels(
    prompter: Prompter, place: str, scenario: Scenario, samples: Sequence[Sample]
) -> Iterator[str]:
    """Labels that begin with the same token, or of which one begins another."""
    shared, inside = [], []
    for sample in samples:
        words = [*sample.question.labels, *sample.question.abstain[:1]]
        ids = prompter.choices(sample.prompt, [scenario.lead + word for word in words]).labels
        lead = min(common_length(ids[0], label) for label in ids)
        ids = [label[lead:] for label in ids]
        for (a, first), (b, second) in combinations(zip(words, ids, strict=True), 2):
            short, long = sorted((first, second), key=len)
            if long[: len(short)] == short:
                inside.append(f"{a!r} and {b!r}")
            elif first[0] == second[0]:
                shared.append(f"{a!r} and {b!r}")
    if inside:
        yield f"{place}: one label's tokens begin another's, which it always beats: {inside[0]}"
    if shared:
        yield f"{place}: labels share their first token and are told apart by later ones: " + (
            f"{shared[0]}" + (f" and {len(shared) - 1} more pairs" if len(shared) > 1 else "")
        )
