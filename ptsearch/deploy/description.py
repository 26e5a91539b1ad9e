"""`ensemble.yaml` as typed records: what the export writes and every reader of the folder gets.

Serving needs `format`, `vote`, `members` and `settings`; the rest informs people. No torch.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import BaseModel, ConfigDict, Field

from ptsearch.config import LLAMACPP, LOCAL, EngineConfig

FORMAT = "ptsearch-ensemble/1"
Scores = dict[str, float]  # metric -> percent


class Record(BaseModel):
    """A record that is not changed once read and has no fields but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class BaseModelInfo(Record):
    """The uncompressed model."""

    name: str = ""
    revision: str = ""
    repo: str = ""  # on the hub; "" = none
    license: str = "other"


class VoteInfo(Record):
    """How the members' answers become one."""

    rule: str = "majority"
    ties: str = "the first of the tied in this order"
    order: list[str]  # labels; the first of the tied wins
    ask: list[str] = Field(default_factory=list)  # labels in the order of asking where it may stop
    refusal: str = ""  # of a question that the study does not have: error | label | veto
    veto: int = 1  # members whose refusal is a veto


class ChatInfo(Record):
    """How the study asked: what `answer` does with a text, and how chat turns become a prompt."""

    texts: str = "text"  # most of its prompts were text as it is | turns: a text is a user's turn
    prompt: str = "chat"  # benchmarks.prompt: turns go through the template | raw | ct_llama2
    arguments: dict[str, object] = Field(default_factory=dict)  # of the chat template
    form: list[str] = Field(default_factory=list)  # what turns must be changed to


class MemberInfo(Record):
    """One member's files."""

    label: str
    folder: str  # relative to the ensemble's
    variant: dict[str, object] = Field(default_factory=dict)
    id: str = ""
    form: str = "stored"  # or "dense bfloat16"
    why: str = ""  # why not as stored; "" where it is
    bytes: int = 0  # of the weights
    files: dict[str, str] = Field(default_factory=dict)  # name -> SHA-256


class Percentiles(Record):
    """Of the latency, in ms."""

    model_config = ConfigDict(extra="ignore")  # a study's rows may hold further percentiles

    p50: float = 0.0
    p95: float = 0.0


class Latency(Record):
    """From prompt to label, one prompt at a time, expected from each member's own times."""

    engine: str = ""
    sequential: Percentiles = Percentiles()
    parallel: Percentiles = Percentiles()
    lazy: Percentiles = Percentiles()


class Cost(Record):
    """As searched, next to the dense model's."""

    target: str = "local"  # in whose form memory and latency were counted
    memory_gb: float = 0.0  # while they run
    stored_gb: float = 0.0
    latency_ms: float = 0.0  # NaN: the target was not run
    calls: float = 0.0  # members asked per prompt until the vote is decided
    bytes_read: float = 0.0
    of_dense: float = 0.0  # memory in percent of the dense model's
    dense_memory_gb: float = 0.0
    dense_bytes: int = 0
    kv_bytes: int = 0  # of one member, in 16 bits
    served_gb: float = 0.0  # one process holds equal tensors once, a server per member does not
    latency: Latency = Latency()


class HalfScores(Record):
    """Scores on both halves of the samples."""

    search: Scores = Field(default_factory=dict)
    holdout: Scores | None = None


class Description(Record):
    """All of `ensemble.yaml`."""

    format: str = FORMAT
    study: str = ""
    run: str = ""
    target: str = "local"
    base_model: BaseModelInfo = BaseModelInfo()
    vote: VoteInfo
    chat: ChatInfo = ChatInfo()
    members: list[MemberInfo]
    scores: HalfScores = HalfScores()
    unskilled: list[str] = Field(default_factory=list)  # benchmarks where a constant is as good
    verdict: str = ""
    cost: Cost = Cost()
    benchmarks: str = ""
    settings: dict[str, object]  # of the study: config key -> value
    written_with: dict[str, str] = Field(default_factory=dict)  # package -> version

    @property
    def in_order(self) -> list[MemberInfo]:
        """The members in the vote's total order."""
        members = {member.label: member for member in self.members}
        return [members[label] for label in self.vote.order]

    @property
    def lazy_order(self) -> Sequence[str]:
        """Labels in the order in which members are asked where asking may stop early."""
        return self.vote.ask or self.vote.order

    @property
    def in_process(self) -> bool:
        """Whether one process of ours runs all members."""
        return self.target in (LOCAL, LLAMACPP)

    def engine(self, settings: EngineConfig | None = None) -> EngineConfig:
        """What runs the members: the engine of the target, in the dtype of the search."""
        settings = settings or EngineConfig(dtype="bfloat16")
        name = LLAMACPP if self.target == LLAMACPP else settings.name
        return replace(settings, name=name, dtype=self.dtype(settings.dtype))

    def dtype(self, default: str) -> str:
        """The engine's dtype in the study."""
        return str(self.settings.get("engine.dtype", default))

    def to_dict(self) -> dict[str, object]:
        return self.model_dump()
