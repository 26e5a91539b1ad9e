"""The texts beside an exported ensemble: model card, start script, compose file, manifests."""

import json
import math
import shlex
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml

from ptsearch.benchmarks import PERSPECTIVES
from ptsearch.config import LOCAL

VLLM = {
    "cpu": "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0",
    "cuda": "vllm/vllm-openai:v0.32.0",
}
SERVER = "vllm.entrypoints.openai.api_server"  # `vllm serve` of the CPU build crashes
PORT = 8000
INSIDE = "/ensemble"  # where containers see the folder
QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # all is in the folder
SEQUENCES = 8  # of full length that the KV cache of a member's server holds
OVERHEAD_GB = 2.0  # of a server beside weights and KV cache
GPU_SHARE = 0.9  # of one GPU, for all members together
SHOWN = ("trust", *PERSPECTIVES, "mmlu", "refusal_rate")

Yaml = dict[str, Any]


def texts(described: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """File name -> text, for everything that does not depend on the weights."""
    yield "README.md", card(described)
    yield "serve.sh", script(described)
    yield "compose.yaml", _dump(compose(described))
    for name, parts in kubernetes(described).items():
        yield f"kubernetes/{name}.yaml", yaml.safe_dump_all(parts, sort_keys=False)


def script(described: Mapping[str, Any]) -> str:
    """serve.sh: every server on this machine."""
    if described["target"] == LOCAL:
        return _template("serve_local.sh").substitute()
    rows = _ordered(described)
    gpu = ' --gpu-memory-utilization "${shares[$i]}"'
    return _template("serve.sh").substitute(
        members=" ".join(shlex.quote(row["label"]) for row in rows),
        shares=" ".join(str(_share(row, rows)) for row in rows),
        environment=" ".join(f"{key}={value}" for key, value in _environment(described).items()),
        arguments=" ".join(_settings(described)) + (gpu if described["target"] == "cuda" else ""),
    )


def compose(described: Mapping[str, Any]) -> Yaml:
    """One service a member and the gateway before them; for target local one service."""
    rows = _ordered(described)
    members = {} if described["target"] == LOCAL else {
        _name(i): _compose_member(described, row, rows) for i, row in enumerate(rows)
    }  # fmt: skip
    front: Yaml = {
        "image": "${PTSEARCH_IMAGE:-ptsearch}",
        "build": {"dockerfile_inline": _dockerfile()},
        "command": [*_front(described), "serve.differ=${DIFFER:-0}"],
        "volumes": [f".:{INSIDE}:ro"],
        "ports": [f"127.0.0.1:{PORT}:{PORT}"],
        "healthcheck": _compose_health(),
        "restart": "unless-stopped",
        "mem_limit": f"{_front_gb(described)}g",
    }
    if members:
        front["depends_on"] = {name: {"condition": "service_healthy"} for name in members}
    return {"services": {**members, "ptsearch-ensemble": front}}


def kubernetes(described: Mapping[str, Any]) -> dict[str, list[Yaml]]:
    """File stem -> manifests: a Deployment and a Service for each member and for the gateway.

    The folder is expected on a volume claimed as `ensemble`.
    """
    rows, target = _ordered(described), described["target"]
    found = {}
    for i, row in enumerate(rows if target != LOCAL else []):
        gb = f"{_member_gb(described)}Gi"
        container: Yaml = {
            "image": VLLM[target],
            "command": ["python3", "-m", SERVER],
            "args": _member_arguments(described, row, GPU_SHARE),
            "env": [{"name": k, "value": v} for k, v in _environment(described).items()],
            "resources": {
                "requests": {"memory": gb, "cpu": "1"},
                "limits": {"memory": gb, **({"nvidia.com/gpu": 1} if target == "cuda" else {})},
            },
        }
        found[_name(i)] = _workload(_name(i), container)
    gb = f"{_front_gb(described)}Gi"
    container = {
        "image": "ptsearch",
        "args": _front(described),
        "resources": {"requests": {"memory": gb, "cpu": "1"}, "limits": {"memory": gb}},
    }
    # Below the quorum it is not ready, but a restart would not mend that.
    found["ptsearch-ensemble"] = _workload("ptsearch-ensemble", container, alive="/metrics")
    return found


def card(described: Mapping[str, Any]) -> str:
    """The model card, with the hub's metadata for quantized models."""
    base, cost, settings = described["base_model"], described["cost"], described["settings"]
    rows = _ordered(described)
    why = [f"`{row['label']}` is written as dense bfloat16: {row['why']}." for row in rows
           if row["why"]]  # fmt: skip
    rule, limit = described["vote"], settings["benchmarks.limit"]
    return _template("card.md").substitute(
        metadata=yaml.safe_dump(metadata(described), sort_keys=False).strip(),
        title=f"{base['name']}, ensemble of {len(rows)}",
        count=len(rows),
        base=f"`{base['repo'] or base['name']}`",
        members="\n".join(f"{n}. `{row['label']}`" for n, row in enumerate(rows, 1)),
        bytes=f"{cost['memory_gb']:.3f}",
        share=f"{cost['of_dense']:.0f} %",
        dense=f"{cost['dense_memory_gb']:.3f}",
        context=settings["memory.context"],
        served=""
        if described["target"] == LOCAL
        else f"As written here, a server for each, they hold {cost['served_gb']:.3f} GB. ",
        forms=" ".join(why),
        latency=_latency_table(cost["latency"]),
        engine=cost["latency"]["engine"],
        scores=_score_table(described["scores"]),
        verdict=described["verdict"],
        rules=settings["benchmarks.rules"],
        data=described["benchmarks"],
        limit=f"{limit} samples a scenario" if limit else "all samples",
        study=described["study"],
        target=f"{described['target']} ({rule['rule']} vote)",
    )


def metadata(described: Mapping[str, Any]) -> Yaml:
    """The card's front matter, as the hub reads it."""
    base = described["base_model"]
    methods = {row["variant"]["method"] for row in described["members"]}
    bits = {f"{row['variant']['bits']}-bit" for row in described["members"]}
    found: Yaml = {"license": base["license"]}
    if base["license"] == "other":
        found |= {"license_name": "as-the-base-model"}
    if base["repo"]:
        found |= {"base_model": [base["repo"]], "base_model_relation": "quantized"}
    return found | {
        "library_name": "ptsearch",
        "pipeline_tag": "text-generation",
        "tags": ["ensemble", "compressed-tensors", *sorted(methods), *sorted(bits)],
    }


def license_of(source: str, base: Path) -> str:
    """The base model's license as its card says; "other" where there is none to read."""
    if source == "wheel":
        return "apache-2.0"
    try:
        _, front, _ = (base / "README.md").read_text(encoding="utf-8").split("---", 2)
        return str(yaml.safe_load(front)["license"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "other"


def _score_table(scores: Mapping[str, Mapping[str, float] | None]) -> str:
    lines = [f"| | {' | '.join(SHOWN)} |", f"|---{'|---' * len(SHOWN)}|"]
    for half, found in scores.items():
        if found:
            lines.append(f"| {half} | {' | '.join(f'{found[key]:.1f}' for key in SHOWN)} |")
    return "\n".join(lines)


def _latency_table(found: Mapping[str, Any]) -> str:
    lines = ["| members | p50 ms | p95 ms |", "|---|---|---|"]
    for way, said in (
        ("sequential", "one after the other"),
        ("lazy", "one after the other until the vote is decided"),
        ("parallel", "side by side"),
    ):
        lines.append(f"| {said} | {found[way]['p50']:.0f} | {found[way]['p95']:.0f} |")
    return "\n".join(lines)


def _compose_member(described: Mapping[str, Any], row: Yaml, rows: list[Yaml]) -> Yaml:
    service: Yaml = {
        "image": "${VLLM_IMAGE:-" + VLLM[described["target"]] + "}",
        "entrypoint": ["python3", "-m", SERVER],
        "command": _member_arguments(described, row, _share(row, rows)),
        "environment": _environment(described),
        "volumes": [f".:{INSIDE}:ro"],
        "ipc": "host",
        "healthcheck": _compose_health(),
        "restart": "unless-stopped",
        "mem_limit": f"{_member_gb(described)}g",
    }
    if described["target"] == "cpu":
        return service
    gpu = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    service["deploy"] = {"resources": {"reservations": {"devices": gpu}}}
    if place := rows.index(row):  # one by one: each looks at what memory is free as it starts
        service["depends_on"] = {_name(place - 1): {"condition": "service_healthy"}}
    return service


def _workload(name: str, container: Yaml, alive: str = "/health") -> list[Yaml]:
    """Deployment and Service; ready when /health says so, restarted when `alive` fails."""
    labels = {"app": name}
    probe = {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 5}
    living = {"httpGet": {"path": alive, "port": PORT}, "periodSeconds": 30}
    container = {
        "name": name,
        **container,
        "ports": [{"containerPort": PORT}],
        "startupProbe": probe | {"failureThreshold": 120},
        "readinessProbe": probe,
        "livenessProbe": living,
        "volumeMounts": [{"name": "ensemble", "mountPath": INSIDE, "readOnly": True}],
    }
    claim = {"claimName": "ensemble", "readOnly": True}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": dict(labels)},
            "template": {
                "metadata": {"labels": dict(labels)},
                "spec": {
                    "containers": [container],
                    "volumes": [{"name": "ensemble", "persistentVolumeClaim": claim}],
                },
            },
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": dict(labels), "ports": [{"port": PORT}]},
    }
    return [json.loads(json.dumps(part)) for part in (deployment, service)]  # no YAML anchors


def _front(described: Mapping[str, Any]) -> list[str]:
    """Arguments of ptsearch in a container."""
    common = [f"serve.dir={INSIDE}", "serve.host=0.0.0.0", f"serve.port={PORT}"]
    common.append("runs_dir=/tmp/runs")
    if described["target"] == LOCAL:
        return ["+serve=local", *common]
    members = range(len(described["members"]))
    engines = ",".join(f"http://{_name(i)}:{PORT}/v1" for i in members)
    return ["+serve=gateway", f"serve.engines=[{engines}]", *common]


def _member_arguments(described: Mapping[str, Any], row: Yaml, share: float) -> list[str]:
    place = ["--model", f"{INSIDE}/{row['folder']}", "--served-model-name", row["label"]]
    gpu = ["--gpu-memory-utilization", str(share)] if described["target"] == "cuda" else []
    return [*place, "--host", "0.0.0.0", "--port", str(PORT), *_settings(described), *gpu]


def _settings(described: Mapping[str, Any]) -> list[str]:
    """Greedy replies are the model's own: no penalty of the checkpoint's generation config."""
    context = str(described["settings"]["memory.context"])
    common = ["--dtype", "bfloat16", "--max-model-len", context, "--generation-config", "vllm"]
    return common + (["--enforce-eager"] if described["target"] == "cpu" else [])


def _environment(described: Mapping[str, Any]) -> dict[str, str]:
    """Of a member's server. On a CPU none is bound to cores: those of one machine share them."""
    if described["target"] == "cuda":
        return QUIET
    cache = {"VLLM_CPU_KVCACHE_SPACE": str(_cache_gb(described))}  # GiB
    return QUIET | cache | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def _dockerfile() -> str:
    """`docker compose build --build-arg PTSEARCH=...`: where pip finds ptsearch."""
    return (
        "FROM python:3.12-slim\n"
        "ARG PTSEARCH=ptsearch\n"
        'RUN pip install --no-cache-dir "$$PTSEARCH"\n'
        'ENTRYPOINT ["python", "-m", "ptsearch"]\n'
    )


def _compose_health() -> Yaml:
    ask = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{PORT}/health')"
    return {
        "test": ["CMD", "python3", "-c", ask],
        "interval": "5s",
        "timeout": "5s",
        "retries": 3,
        "start_period": "600s",
    }


def _ordered(described: Mapping[str, Any]) -> list[Yaml]:
    """The members in the vote's total order."""
    rows = {row["label"]: row for row in described["members"]}
    return [rows[label] for label in described["vote"]["order"]]


def _name(i: int) -> str:
    return f"ptsearch-member-{i}"


def _share(row: Yaml, rows: list[Yaml]) -> float:
    """Of one GPU's memory, by the bytes of the weights."""
    share = GPU_SHARE * float(row["bytes"]) / sum(float(each["bytes"]) for each in rows)
    return int(share * 1000) / 1000


def _cache_gb(described: Mapping[str, Any]) -> int:
    """KV cache of a member's server on a CPU."""
    return math.ceil(SEQUENCES * described["cost"]["kv_bytes"] / 1e9)


def _member_gb(described: Mapping[str, Any]) -> int:
    """Memory of a member's server: dense weights at worst, KV cache, the rest."""
    dense = described["cost"]["dense_bytes"] / 1e9
    return math.ceil(dense + _cache_gb(described) + OVERHEAD_GB)


def _front_gb(described: Mapping[str, Any]) -> int:
    """The gateway holds no weights; the one process of target local holds all, dense."""
    if described["target"] != LOCAL:
        return 1
    dense = len(described["members"]) * described["cost"]["dense_bytes"]
    return math.ceil(dense / 1e9 + OVERHEAD_GB)


def _template(name: str) -> Template:
    return Template(files("ptsearch").joinpath("templates", name).read_text(encoding="utf-8"))


def _dump(value: Yaml) -> str:
    return yaml.safe_dump(json.loads(json.dumps(value)), sort_keys=False)
