"""A question as a served ensemble is asked it, and how what a member says becomes an answer.

Nothing here needs torch: the gateway, which runs no model, reads its members' replies the same way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from ptsearch.benchmarks import Turn
from ptsearch.benchmarks.parsing import Question, best, margin, without_thoughts
from ptsearch.benchmarks.prompts import TurnForm, formed
from ptsearch.benchmarks.registry import RULES

Turns = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}]


@dataclass(frozen=True)
class Query:
    """One prompt and the labels it is answered with.

    `max_new_tokens=0`: the label with the highest log-probability behind prompt and `lead` (None =
    a space after text, nothing after chat turns). More: a greedy reply of at most so many tokens,
    read by the rule `parse` of `rules`, which is where a member can refuse. `offsets` are, for each
    member, log-probabilities to subtract (its calibration).
    """

    prompt: str | Turns
    question: Question
    lead: str | None = None
    max_new_tokens: int = 0
    stop: str = ""
    parse: str = "words"
    rules: str = "clean"
    offsets: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        labels = self.question.labels
        if not labels or len(set(labels)) < len(labels) or not all(labels):
            raise ValueError(f"labels must be distinct and not empty, got {list(labels)}")
        texts = [self.prompt] if isinstance(self.prompt, str) else contents(self.prompt)
        if not any(text.strip() for text in texts):
            raise ValueError("the prompt is empty")
        if self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {self.max_new_tokens}")

    @property
    def size(self) -> int:
        """Characters of the prompt and the labels."""
        texts = [self.prompt] if isinstance(self.prompt, str) else contents(self.prompt)
        return sum(map(len, (*texts, *self.question.labels)))

    @property
    def before(self) -> str:
        """The text between the prompt and a label."""
        if self.lead is not None:
            return self.lead
        return " " if isinstance(self.prompt, str) else ""

    @property
    def continuations(self) -> list[str]:
        """The texts whose log-probability is asked, one a label; abstaining last, where offered."""
        words = (*self.question.labels, *self.question.abstain[:1])
        return [self.before + word for word in words]


class MemberAnswer(NamedTuple):
    """What one member said: log-probabilities in nats, one a continuation, or a reply."""

    logprobs: tuple[float, ...] = ()
    reply: str = ""


def contents(turns: Turns) -> list[str]:
    """The texts of chat turns; ValueError unless each is {role, content}, both text."""
    for turn in turns:
        if not isinstance(turn, Mapping) or not all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"a chat turn must be {{role, content}}, both text, got {turn!r}")
    return [turn["content"] for turn in turns]


def with_form(query: Query, form: TurnForm) -> Query:
    """The query with its turns in a form that the members' chat template takes."""
    if not form or isinstance(query.prompt, str):
        return query
    turns = formed([Turn(turn["role"], turn["content"]) for turn in query.prompt], form)
    return replace(query, prompt=tuple(turn._asdict() for turn in turns))


def code(query: Query, member: str, said: MemberAnswer) -> int:
    """The answer code (see `rules`) of what a member said."""
    if said.logprobs:
        return best(said.logprobs, query.offsets.get(member))
    reply = without_thoughts(said.reply)
    reply = reply.split(query.stop)[0] if query.stop else reply
    return RULES[query.rules][query.parse](reply.removeprefix(query.before), query.question)


def sureness(query: Query, member: str, said: MemberAnswer) -> float:
    """Nats between a member's two best labels; NaN where it replied."""
    return margin(said.logprobs, query.offsets.get(member)) if said.logprobs else math.nan


def name(query: Query, answer: int) -> str | None:
    """The label of an answer code; None = no answer."""
    labels = (*query.question.labels, *query.question.abstain[:1])
    return labels[answer] if answer >= 0 else None


def to_fields(query: Query) -> dict[str, object]:
    """As JSON has it; what is at its default is left out."""
    question = {key: v for key, v in query.question._asdict().items() if v not in ((), "", -1)}
    plain = {f.name: getattr(query, f.name) for f in fields(query)}
    defaults = {f.name: f.default for f in fields(query)} | {"offsets": {}}
    changed = {key: value for key, value in plain.items() if value != defaults[key]}
    return changed | {"question": question}


def from_fields(recorded: Mapping[str, Any]) -> Query:
    """The query that went through JSON."""
    question: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in recorded["question"].items()
    }
    return Query(**{**recorded, "question": Question(**question)})
