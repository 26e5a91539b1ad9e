"""A question as a served ensemble is asked it, and how what a member says becomes an answer.

Nothing here needs torch: the gateway, which runs no model, reads its members' replies the same way.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from ptsearch.benchmarks import Turn
from ptsearch.benchmarks.parsing import Question, best, margin, without_thoughts
from ptsearch.benchmarks.prompts import RAW_LEAD, RAW_STOP, as_text, formed
from ptsearch.benchmarks.registry import RULES
from ptsearch.config import REFUSALS
from ptsearch.deploy.description import ChatInfo, VoteInfo
from ptsearch.scoring import refusals
from ptsearch.voting import votes

Turns = Sequence[Mapping[str, str]]  # [{"role": "user", "content": "..."}]


@dataclass(frozen=True)
class Query:
    """One prompt and the labels it is answered with.

    `max_new_tokens=0`: the label with the highest log-probability behind prompt and `lead` (None =
    a space after text, nothing after chat turns). More: a greedy reply of at most so many tokens,
    read by the rule `parse` of `rules`, which is where a member can refuse. `offsets` are, for each
    member, log-probabilities to subtract (its calibration). `refusal`: error, label, veto (of
    `veto` members), or "" for what the ensemble does (`Scenario.refusal`).
    """

    prompt: str | Turns
    question: Question
    lead: str | None = None
    max_new_tokens: int = 0
    stop: str = ""
    parse: str = "words"
    rules: str = "clean"
    offsets: Mapping[str, Sequence[float]] = field(default_factory=dict)
    refusal: str = ""
    veto: int = 1
    apart: bool = False  # refuse labels of which one begins another, which it always beats

    def __post_init__(self) -> None:
        labels = self.question.labels
        if not labels or len(set(labels)) < len(labels) or not all(labels):
            raise ValueError(f"labels must be distinct texts, got {list(labels)}")
        texts = [self.prompt] if isinstance(self.prompt, str) else contents(self.prompt)
        if not any(text.strip() for text in texts):
            raise ValueError("the prompt is empty")
        if not isinstance(self.lead, str | None):
            raise ValueError(f"lead must be a text, got {self.lead!r}")
        if self.refusal not in ("", *REFUSALS) or type(self.veto) is not int or self.veto < 1:
            raise ValueError(
                f"refusal must be {', '.join(REFUSALS)} and veto at least 1, got "
                f"{self.refusal!r} and {self.veto!r}"
            )
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 0:
            raise ValueError(f"max_new_tokens must be at least 0, got {self.max_new_tokens!r}")

    @property
    def decide(self) -> int:
        """What a refusal is in the vote, see `refusals.deciding`."""
        return refusals.deciding(self.refusal, self.question, self.veto)

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


def question_of(labels: Iterable[str]) -> Question:
    """The question that has these labels. ValueError: not two or more different texts."""
    given = () if isinstance(labels, str | bytes | Mapping) else labels
    words = tuple(given) if isinstance(given, Iterable) else ()
    different = {" ".join(word.split()) for word in words if isinstance(word, str)} - {""}
    if len(words) < 2 or len(different) < len(words):
        said = repr(labels)[:200]
        raise ValueError(f"labels must be a list of two or more distinct texts, got {said}")
    return Question(words)


def contents(turns: Turns) -> list[str]:
    """The texts of chat turns; ValueError unless each is {role, content}, both text."""
    if isinstance(turns, bytes | Mapping) or not isinstance(turns, Sequence):
        raise ValueError(f"a prompt must be a text or a list of chat turns, got {turns!r}")
    for turn in turns:
        if not isinstance(turn, Mapping) or not all(
            isinstance(turn.get(key), str) for key in ("role", "content")
        ):
            raise ValueError(f"a chat turn must be {{role, content}}, both text, got {turn!r}")
    return [turn["content"] for turn in turns]


def with_form(query: Query, chat: ChatInfo) -> Query:
    """The query with its turns as the study asked: in a form that the members' chat template takes,
    or as text.
    """
    if isinstance(query.prompt, str):
        return query
    turns = [Turn(turn["role"], turn["content"]) for turn in query.prompt]
    if chat.prompt == "chat":
        turns = formed(turns, frozenset(chat.form))
        return replace(query, prompt=tuple(turn._asdict() for turn in turns))
    lead, stop = (RAW_LEAD, RAW_STOP) if chat.prompt == "raw" else ("", "")
    lead = lead if query.lead is None else query.lead
    return replace(query, prompt=as_text(turns, chat.prompt), lead=lead, stop=query.stop or stop)


def with_refusal(query: Query, ensemble: VoteInfo) -> Query:
    """The query with what a refusal is for the ensemble, where it does not say."""
    if query.refusal:
        return query
    return replace(query, refusal=ensemble.refusal, veto=ensemble.veto)


def code(query: Query, member: str, said: MemberAnswer) -> int:
    """The answer code (see `rules`) of what a member said."""
    if said.logprobs:
        return best(said.logprobs, query.offsets.get(member))
    reply = without_thoughts(said.reply)
    reply = reply.split(query.stop)[0] if query.stop else reply
    return RULES[query.rules][query.parse](reply.removeprefix(query.before), query.question)


def vote(query: Query, codes: Sequence[int]) -> int:
    """The answer code of the majority; `codes` from the most precise member on."""
    ballots = [refusals.ballot(code, query.question, query.decide) for code in codes]
    return refusals.outcome(votes.vote(ballots), codes, query.question, query.decide)


def decided(query: Query, codes: Mapping[str, int], order: Sequence[str]) -> bool:
    """Whether no answer of the pending members of `order`, the vote's own, can change the vote."""
    asked, decide = query.question, query.decide
    ballots = {member: refusals.ballot(code, asked, decide) for member, code in codes.items()}
    return votes.decided(ballots, order, max(decide, 0))


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
