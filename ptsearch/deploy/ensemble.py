"""An exported ensemble in one process: its members answer, then vote.

ensemble = PrecisionEnsemble.from_pretrained("chosen")
ensemble.answer(["Review: dull.\\nSentiment:"], ["negative", "positive"])[0].label
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from ptsearch import engine as engines
from ptsearch.benchmarks.parsing import Question
from ptsearch.config import EngineConfig
from ptsearch.deploy import folder as exported
from ptsearch.deploy import query
from ptsearch.deploy.description import Description
from ptsearch.deploy.query import MemberAnswer, Query, Turns
from ptsearch.engine import Engine, lanes, memory
from ptsearch.models.prompting import Prompter
from ptsearch.shared import one_of

if TYPE_CHECKING:
    from ptsearch.models.loading import Tokenizer


log = logging.getLogger(__name__)


class Answer(NamedTuple):
    """The vote on one prompt; members stand in the vote's total order."""

    label: str | None  # None: refused, no member gave a usable answer
    members: dict[str, str | None]  # what each member that was asked answered; None as above
    said: dict[str, MemberAnswer]  # its log-probabilities or reply
    votes: dict[str, int]  # label -> members that gave it


@dataclass(frozen=True)
class PrecisionEnsemble:
    """Members of an exported ensemble, loaded; tensors that are equal are in memory once."""

    folder: exported.Exported
    engines: dict[str, Engine]  # in the vote's total order

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, settings: EngineConfig | None = None
    ) -> "PrecisionEnsemble":
        """Check the folder, then load its members; by default in the dtype of the search.

        ValueError: incomplete or altered, another format, not enough memory.
        """
        opened = exported.open_folder(folder)
        settings = settings or opened.description.engine()
        loaded: dict[str, Engine] = {}
        for number, (label, checkpoint) in enumerate(opened.members.items(), 1):
            log.info("loading member %d of %d: %s", number, len(opened.members), label)
            engine = _load(checkpoint, settings)
            if engine.local is not None:
                others = [other.local.model for other in loaded.values() if other.local is not None]
                memory.share(engine.local.model, others)
            alike = [e.tokenizer for e in loaded.values() if _alike(e.tokenizer, engine.tokenizer)]
            loaded[label] = engine._replace(tokenizer=[*alike, engine.tokenizer][0])
        return cls(opened, loaded)

    @property
    def members(self) -> list[str]:
        """Labels in the vote's total order: the first of the tied wins."""
        return list(self.engines)

    @property
    def description(self) -> Description:
        """The content of `ensemble.yaml`."""
        return self.folder.description

    @property
    def tokenizer(self) -> "Tokenizer":
        """Of the first member; all have the base model's."""
        return next(iter(self.engines.values())).tokenizer

    @cached_property
    def prompters(self) -> dict[str, Prompter]:
        """What makes each member's prompts; members with equal tokenizers have the same one."""
        arguments = self.description.chat.arguments
        tokenizers = {id(e.tokenizer): e.tokenizer for e in self.engines.values()}
        made = {key: Prompter(tokenizer, arguments) for key, tokenizer in tokenizers.items()}
        return {label: made[id(engine.tokenizer)] for label, engine in self.engines.items()}

    def answer(
        self,
        prompts: Sequence[str | Turns],
        labels: Sequence[str],
        max_new_tokens: int = 0,
        lazy: bool = False,
        lead: str | None = None,
        texts: str = "",
    ) -> list[Answer]:
        """One of `labels` for each prompt: a text, or chat turns ({role, content}).

        Prompts are made as the study made them: turns by its `benchmarks.prompt`; a text is a
        user's turn if most of the study's prompts were turns (`texts="turns"`), else it is asked
        as it is (`texts="text"`). `max_new_tokens=0` compares the labels' log-probabilities; more
        lets the members reply and reads the replies, in which case they may refuse. `lazy` stops
        asking when the vote is decided; labels are the same. `lead` stands between prompt and label
        (None = a space after text, nothing after chat turns). ValueError: prompts or labels that
        are none, a prompt beyond the context, a label that begins another.
        """
        if isinstance(prompts, str | bytes | Mapping) or not isinstance(prompts, Iterable):
            raise ValueError(f"prompts must be a list, such as [prompt], got {prompts!r}")
        question = query.question_of(labels)
        asked = [self.query(each, question, lead, max_new_tokens, texts) for each in prompts]
        return self.ask(asked, lazy)

    def query(
        self,
        prompt: str | Turns,
        question: Question,
        lead: str | None = None,
        max_new_tokens: int = 0,
        texts: str = "",
    ) -> Query:
        """The prompt as the study would ask it, see `answer`."""
        chat = self.description.chat
        one_of("texts", texts or chat.texts, ("text", "turns"))
        if isinstance(prompt, str) and (texts or chat.texts) == "turns":
            prompt = [{"role": "user", "content": prompt}]
        asked = Query(prompt, question, lead, max_new_tokens, apart=True)
        return query.with_form(query.with_refusal(asked, self.description.vote), chat)

    def ask(
        self,
        queries: Sequence[Query],
        lazy: bool = False,
        told: Callable[[int, Answer], None] | None = None,
        wanted: Callable[[int], bool] | None = None,
    ) -> list[Answer]:
        """As `answer`, each prompt with labels and mode of its own.

        `told(index, answer)` is called once per query, from a worker thread. What `wanted(index)`
        denies, asked before each member and after each forward, is dropped: no member answers it.
        """
        told, wanted = told or _untold, wanted or _wanted
        if not lazy:
            return self._ask_together(queries, told, wanted)
        answers = self._ask_in_turn(queries, wanted)
        for number, answer in enumerate(answers):
            if answer.members:
                told(number, answer)
        return answers

    def _ask_in_turn(self, queries: Sequence[Query], wanted: Callable[[int], bool]) -> list[Answer]:
        """One member after the other, each only what is undecided so far."""
        order = self.description.lazy_order
        said: list[dict[str, MemberAnswer]] = [{} for _ in queries]
        codes: list[dict[str, int]] = [{} for _ in queries]
        left = list(range(len(queries)))
        for member in order:
            prompter = self.prompters[member]
            tokens = {i: tokenized(prompter, queries[i]) for i in left}
            for i, one in say(self.engines[member], tokens, wanted).items():
                said[i][member] = one
                codes[i][member] = query.code(queries[i], member, one)
            left = [
                i for i in left
                if member in codes[i] and not query.decided(queries[i], codes[i], self.members)
            ]  # fmt: skip
        return [self.count(*each) for each in zip(queries, codes, said, strict=True)]

    def _ask_together(
        self,
        queries: Sequence[Query],
        told: Callable[[int, Answer], None],
        wanted: Callable[[int], bool],
    ) -> list[Answer]:
        """All members side by side on the machine's cores."""
        prompters = set(self.prompters.values())
        tokens = {each: [tokenized(each, query) for query in queries] for each in prompters}
        asked = {label: tokens[self.prompters[label]] for label in self.members}
        first = asked[self.members[0]]
        order = sorted(range(len(queries)), key=lambda i: first[i].prompt)
        count = min(engines.lanes_of(engine) for engine in self.engines.values())
        caches = [e.local.kept for e in self.engines.values() if e.local is not None]
        if all(caches):  # else prompts with equal beginnings stay together
            order = [i for lane in range(count) for i in order[lane::count]]  # equally long parts
        said: list[dict[str, MemberAnswer]] = [{} for _ in queries]
        answers: dict[int, Answer] = {}
        lock = Lock()

        def run(member: str, places: range) -> None:
            engine = self.engines[member]
            some = {order[place]: asked[member][order[place]] for place in places}
            found = say(engines.lane(engine, count), some, wanted)
            with lock:
                for i, one in found.items():
                    said[i][member] = one
                    if len(said[i]) == len(self.members):
                        answers[i] = self._vote(queries[i], said[i])
                        told(i, answers[i])

        parts = shares(self.members, len(queries), count)
        lanes.run([partial(run, *part) for part in parts], count)
        return [answers.get(i) or self.count(queries[i], {}, {}) for i in range(len(queries))]

    def _vote(self, asked: Query, said: dict[str, MemberAnswer]) -> Answer:
        in_order = {member: said[member] for member in self.members}
        codes = {member: query.code(asked, member, one) for member, one in in_order.items()}
        return self.count(asked, codes, in_order)

    def count(self, asked: Query, codes: dict[str, int], said: dict[str, MemberAnswer]) -> Answer:
        """The answer that the codes of some or all members vote for."""
        members = [member for member in self.members if member in codes]
        names = {member: query.name(asked, codes[member]) for member in members}
        votes: dict[str, int] = {}
        for given in names.values():
            if given is not None:
                votes[given] = votes.get(given, 0) + 1
        winner = query.vote(asked, [codes[member] for member in members])
        return Answer(query.name(asked, winner), names, said, votes)


def _load(checkpoint: Path, settings: EngineConfig) -> Engine:
    """ValueError, also where a library stumbles over what somebody else wrote."""
    try:
        return engines.load(checkpoint, settings)
    except Exception as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        reason = f"{checkpoint} cannot be loaded: {kind}{' '.join(str(error).split())[:300]}"
        raise ValueError(f"{reason}\n{exported.CURE}") from error


class TokenizedQuery(NamedTuple):
    """A query in tokens."""

    prompt: list[int]
    labels: list[list[int]]
    max_new_tokens: int


def tokenized(prompter: Prompter, asked: Query) -> TokenizedQuery:
    """The query as a member is asked it; for a reply its prompt alone."""
    prompt = asked.prompt
    turns = prompt if isinstance(prompt, str) else tuple((t["role"], t["content"]) for t in prompt)
    labels = () if asked.max_new_tokens else tuple(asked.continuations)
    ids, continuations = _choices(prompter, turns, labels)
    in_order = sorted(zip(continuations, labels, strict=True)) if asked.apart else ()
    for (short, one), (long, other) in pairwise(in_order):
        if long[: len(short)] == short:
            raise ValueError(
                f"the label {other.strip()!r} begins as {one.strip()!r} does, which always beats "
                "it: choose other words, or max_new_tokens=8 to read replies"
            )
    return TokenizedQuery(ids, continuations, asked.max_new_tokens)


class _UnwantedError(Exception):
    """Nobody waits any more for what is being computed."""


def say(
    engine: Engine, asked: Mapping[int, TokenizedQuery], wanted: Callable[[int], bool]
) -> dict[int, MemberAnswer]:
    """What a member says to each prompt that is wanted, answered together; nothing where meanwhile
    none is.
    """
    asked = {i: each for i, each in asked.items() if wanted(i)}

    def go_on(_done: int, _total: int) -> None:
        if not any(map(wanted, asked)):
            raise _UnwantedError

    with suppress(_UnwantedError):
        return _said(engine, asked, go_on)
    return {}


def _said(
    engine: Engine, asked: Mapping[int, TokenizedQuery], report: Callable[[int, int], None]
) -> dict[int, MemberAnswer]:
    said: dict[int, MemberAnswer] = {}
    chosen = [i for i, each in asked.items() if not each.max_new_tokens]
    if chosen:
        prompts, labels = [asked[i].prompt for i in chosen], [asked[i].labels for i in chosen]
        rows = engines.score(engine, prompts, labels, report)
        said |= {i: MemberAnswer(tuple(row)) for i, row in zip(chosen, rows, strict=True)}
    replying = [i for i, each in asked.items() if each.max_new_tokens]
    if replying:
        prompts, limits = (
            [asked[i].prompt for i in replying],
            [asked[i].max_new_tokens for i in replying],
        )
        replies = engines.generate(engine, prompts, limits, report)
        texts = [str(engine.tokenizer.decode(ids, skip_special_tokens=True)) for ids in replies]
        said |= {i: MemberAnswer(reply=text) for i, text in zip(replying, texts, strict=True)}
    return said


def shares(members: Sequence[str], queries: int, lanes: int) -> list[tuple[str, range]]:
    """All queries to all members, in parts for so many lanes: members as long as every lane gets
    one, the others divided. A lane that is done takes the next part.
    """
    whole = len(members) - len(members) % lanes
    parts = [(member, range(queries)) for member in members[:whole]]
    cuts = [queries * lane // lanes for lane in range(lanes + 1)]
    runs = [range(*run) for run in pairwise(cuts) if run[0] < run[1]]
    return parts + [(member, run) for member in members[whole:] for run in runs]


@lru_cache(maxsize=256)  # every member asks the same
def _choices(
    prompter: Prompter, prompt: str | tuple[tuple[str, str], ...], labels: tuple[str, ...]
) -> tuple[list[int], list[list[int]]]:
    return prompter.choices(prompt, labels)[:2]


def _alike(a: "Tokenizer", b: "Tokenizer") -> bool:
    if not (a.is_fast and b.is_fast):
        return False
    same: bool = a.backend_tokenizer.to_str() == b.backend_tokenizer.to_str()
    return same and a.chat_template == b.chat_template


def _untold(number: int, answer: Answer) -> None:
    pass


def _wanted(number: int) -> bool:
    return True


@dataclass(frozen=True)
class _Registered:
    """The ensemble as MLflow's pyfunc calls it."""

    ensemble: PrecisionEnsemble

    def predict(self, rows: Any, params: dict[str, Any] | None = None) -> list[str | None]:
        """The label of each row {prompt, labels} of a DataFrame; `params`: max_new_tokens."""
        asked = [
            self.ensemble.query(row["prompt"], query.question_of(row["labels"]), **(params or {}))
            for row in rows.to_dict("records")
        ]
        return [answer.label for answer in self.ensemble.ask(asked)]


def _load_pyfunc(path: str) -> _Registered:
    """MLflow calls this for a registered ensemble; `path` holds the folder's path."""
    return _Registered(PrecisionEnsemble.from_pretrained(Path(path).read_text(encoding="utf-8")))
