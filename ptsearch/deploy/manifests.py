"""The texts of an exported ensemble: model card, start script, compose file, Kubernetes manifests.

Each is a Jinja template in `templates/`; here are the values that they show.
"""

import math
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from ptsearch.benchmarks import PERSPECTIVES
from ptsearch.config import LOCAL
from ptsearch.deploy.description import Description, HalfScores, Latency, MemberInfo

VLLM = {
    "cpu": "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0",
    "cuda": "vllm/vllm-openai:v0.32.0",
}
SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` of the CPU build crashes
FRONT = "ptsearch-ensemble"  # the gateway, or the one server of target local
PORT = 8000
INSIDE = "/ensemble"  # where containers see the folder
QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # the folder is complete
SEQUENCES = 8  # of full length that the KV cache of a member's server holds
OVERHEAD_GB = 2.0  # of a server, on top of weights and KV cache
GPU_SHARE = 0.9  # of one GPU, for all members together
SHOWN = ("trust", *PERSPECTIVES, "mmlu", "refusal_rate")


def texts(described: Description) -> Iterator[tuple[str, str]]:
    """File name -> text, for everything that does not depend on the weights."""
    yield "README.md", card(described)
    yield "serve.sh", script(described)
    yield "compose.yaml", compose(described)
    for name, text in kubernetes(described).items():
        yield f"kubernetes/{name}.yaml", text


def script(described: Description) -> str:
    """serve.sh: every server on this machine."""
    if described.target == LOCAL:
        return _render("serve_local.sh")
    gpu = ' --gpu-memory-utilization "${shares[$i]}"' if described.target == "cuda" else ""
    return _render(
        "serve.sh",
        members=" ".join(shlex.quote(member.label) for member in described.in_order),
        shares=" ".join(str(share) for share in _shares(described)),
        environment=" ".join(f"{key}={value}" for key, value in _environment(described).items()),
        arguments=" ".join(_settings(described)) + gpu,
    )


def compose(described: Description) -> str:
    """One service per member and the gateway; for target local one service."""
    local = described.target == LOCAL
    members = zip(described.in_order, _shares(described), strict=True)
    servers = [
        {"name": _name(i), "arguments": _member_arguments(described, member, share)}
        for i, (member, share) in enumerate(members)
    ]
    return _render(
        "compose.yaml",
        target=described.target,
        servers=[] if local else servers,
        image=VLLM.get(described.target, ""),
        module=SERVER,
        environment=_environment(described),
        mount=INSIDE,
        port=PORT,
        server_gb=_member_gb(described),
        front=FRONT,
        front_arguments=_front(described),
        front_gb=_front_gb(described),
    )


def kubernetes(described: Description) -> dict[str, str]:
    """File stem -> a Deployment and a Service, for each member and for the gateway."""
    target, common = described.target, {"port": PORT, "mount": INSIDE}
    front = _render(
        "kubernetes.yaml",
        name=FRONT,
        image="ptsearch",
        module="",
        arguments=_front(described),
        gb=_front_gb(described),
        gpu=False,
        alive="/metrics",
        **common,
    )
    members = described.in_order if target != LOCAL else []
    return {
        _name(i): _render(
            "kubernetes.yaml",
            name=_name(i),
            image=VLLM[target],
            module=SERVER,
            arguments=_member_arguments(described, member, GPU_SHARE),
            environment=_environment(described),
            gb=_member_gb(described),
            gpu=target == "cuda",
            alive="/health",
            **common,
        )
        for i, member in enumerate(members)
    } | {FRONT: front}


def card(described: Description) -> str:
    """The model card, with the hub's metadata for quantized models."""
    base, cost, settings = described.base_model, described.cost, described.settings
    members, limit = described.in_order, settings["benchmarks.limit"]
    forms = [f"`{m.label}` is written as dense bfloat16: {m.why}." for m in members if m.why]
    apart = f"As written here, with one server per member, they hold {cost.served_gb:.3f} GB. "
    return _render(
        "card.md",
        metadata=yaml.safe_dump(metadata(described), sort_keys=False).strip(),
        title=f"{base.name}, ensemble of {len(members)}",
        count=len(members),
        base=f"`{base.repo or base.name}`",
        members="\n".join(f"{n}. `{member.label}`" for n, member in enumerate(members, 1)),
        bytes=f"{cost.memory_gb:.3f}",
        share=f"{cost.of_dense:.0f} %",
        dense=f"{cost.dense_memory_gb:.3f}",
        context=settings["memory.context"],
        served="" if described.target == LOCAL else apart,
        forms=" ".join(forms),
        latency=_latency_table(cost.latency),
        engine=cost.latency.engine,
        scores=_score_table(described.scores),
        verdict=described.verdict,
        rules=settings["benchmarks.rules"],
        data=described.benchmarks,
        limit=f"{limit} samples per scenario" if limit else "all samples",
        study=described.study,
        target=f"{described.target} ({described.vote.rule} vote)",
    )


def metadata(described: Description) -> dict[str, object]:
    """The card's front matter, as the hub reads it."""
    base = described.base_model
    methods = {str(member.variant["method"]) for member in described.members}
    bits = {f"{member.variant['bits']}-bit" for member in described.members}
    fields: dict[str, object] = {"license": base.license}
    if base.license == "other":
        fields |= {"license_name": "as-the-base-model"}
    if base.repo:
        fields |= {"base_model": [base.repo], "base_model_relation": "quantized"}
    return fields | {
        "library_name": "ptsearch",
        "pipeline_tag": "text-generation",
        "tags": ["ensemble", "compressed-tensors", *sorted(methods), *sorted(bits)],
    }


def license_of(source: str, base: Path) -> str:
    """The license in the base model's card; "other" where there is none to read."""
    if source == "wheel":
        return "apache-2.0"
    try:
        _, front, _ = (base / "README.md").read_text(encoding="utf-8").split("---", 2)
        return str(yaml.safe_load(front)["license"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "other"


def _score_table(scores: HalfScores) -> str:
    lines = [f"| | {' | '.join(SHOWN)} |", f"|---{'|---' * len(SHOWN)}|"]
    for half, values in (("search", scores.search), ("holdout", scores.holdout)):
        if values:
            lines.append(f"| {half} | {' | '.join(f'{values[key]:.1f}' for key in SHOWN)} |")
    return "\n".join(lines)


def _latency_table(latency: Latency) -> str:
    rows = (
        (latency.sequential, "one after the other"),
        (latency.lazy, "one after the other until the vote is decided"),
        (latency.parallel, "side by side"),
    )
    lines = [f"| {way} | {found.p50:.0f} | {found.p95:.0f} |" for found, way in rows]
    return "\n".join(["| members | p50 ms | p95 ms |", "|---|---|---|", *lines])


def _front(described: Description) -> list[str]:
    """Arguments of ptsearch in a container."""
    common = [f"serve.dir={INSIDE}", "serve.host=0.0.0.0", f"serve.port={PORT}"]
    common.append("runs_dir=/tmp/runs")
    if described.target == LOCAL:
        return ["+serve=local", *common]
    engines = ",".join(f"http://{_name(i)}:{PORT}/v1" for i in range(len(described.members)))
    return ["+serve=gateway", f"serve.engines=[{engines}]", *common]


def _member_arguments(described: Description, member: MemberInfo, share: float) -> list[str]:
    place = ["--model", f"{INSIDE}/{member.folder}", "--served-model-name", member.label]
    gpu = ["--gpu-memory-utilization", str(share)] if described.target == "cuda" else []
    return [*place, "--host", "0.0.0.0", "--port", str(PORT), *_settings(described), *gpu]


def _settings(described: Description) -> list[str]:
    """Greedy replies are the model's own: no penalty of the checkpoint's generation config."""
    context = str(described.settings["memory.context"])
    common = ["--dtype", "bfloat16", "--max-model-len", context, "--generation-config", "vllm"]
    return common + (["--enforce-eager"] if described.target == "cpu" else [])


def _environment(described: Description) -> dict[str, str]:
    """Of a member's server. On a CPU none is bound to cores: the servers share the machine's."""
    if described.target == "cuda":
        return QUIET
    kv_cache = {"VLLM_CPU_KVCACHE_SPACE": str(_cache_gb(described))}  # GiB
    return QUIET | kv_cache | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _name(i: int) -> str:
    return f"ptsearch-member-{i}"


def _shares(described: Description) -> Sequence[float]:
    """Of one GPU's memory per member, by the bytes of the weights."""
    sizes = [member.bytes for member in described.in_order]
    return [int(GPU_SHARE * size / sum(sizes) * 1000) / 1000 for size in sizes]


def _cache_gb(described: Description) -> int:
    """KV cache of a member's server on a CPU."""
    return math.ceil(SEQUENCES * described.cost.kv_bytes / 1e9)


def _member_gb(described: Description) -> int:
    """Memory of a member's server: dense weights at worst, KV cache, the rest."""
    return math.ceil(described.cost.dense_bytes / 1e9 + _cache_gb(described) + OVERHEAD_GB)


def _front_gb(described: Description) -> int:
    """The gateway holds no weights; the one process of target local holds all, dense."""
    if described.target != LOCAL:
        return 1
    return math.ceil(len(described.members) * described.cost.dense_bytes / 1e9 + OVERHEAD_GB)


@cache
def _templates() -> Environment:
    return Environment(  # scripts, YAML and Markdown, no HTML
        loader=PackageLoader("ptsearch.deploy"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )


def _render(template: str, **values: object) -> str:
    return _templates().get_template(template).render(values)
