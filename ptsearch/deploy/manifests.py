"""The texts of an exported ensemble: model card, start script, compose file, Kubernetes manifests.

Each is a Jinja template in `templates/`; here are the values that they show.
"""

import math
import shlex
from collections.abc import Iterator
from pathlib import Path

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from ptsearch.deploy.description import Description, MemberInfo
from ptsearch.report.rows import shown_benchmarks
from ptsearch.variant import method_of

VLLM = {
    "cpu": "public.ecr.aws/q9t5s3a7/vllm-cpu-release-repo:v0.32.0",
    "cuda": "vllm/vllm-openai:v0.32.0",
}
FRONT = "ptsearch-ensemble"  # the gateway, or the one server of target local
PORT = 8000
INSIDE = "/ensemble"  # where containers see the folder
QUIET = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}  # the folder is complete
SEQUENCES = 8  # of full length that the KV cache of a member's server holds
OVERHEAD_GB = 2.0  # of a server, on top of weights and KV cache
GPU_SHARE = 0.9  # of one GPU, for all members together


def texts(described: Description) -> Iterator[tuple[str, str]]:
    """File name -> text, for everything that does not depend on the weights."""
    templates = Environment(  # scripts, YAML and Markdown, no HTML
        loader=PackageLoader("ptsearch.deploy"),
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    templates.filters |= {"quoted": shlex.quote, "read_by": _read_by}
    values = _values(described)
    script = "serve_local.sh" if described.in_process else "serve.sh"
    files = {"README.md": "card.md", "serve.sh": script, "compose.yaml": "compose.yaml"}
    for name, template in files.items():
        yield name, templates.get_template(template).render(values)
    members = [] if described.in_process else described.in_order
    servers = {
        f"ptsearch-member-{i}": _server_arguments(described, member, GPU_SHARE)
        for i, member in enumerate(members)
    }
    for name, arguments in {**servers, FRONT: _front_arguments(described)}.items():
        one = {"name": name, "arguments": arguments, "is_front": name == FRONT}
        text = templates.get_template("kubernetes.yaml").render(values | one)
        yield f"kubernetes/{name}.yaml", text


def _values(described: Description) -> dict[str, object]:
    """What the templates show."""
    members, cost, local = described.in_order, described.cost, described.in_process
    cache_gb = math.ceil(SEQUENCES * cost.kv_bytes / 1e9)
    dense_gb = cost.dense_bytes / 1e9
    cpu = {  # no server is bound to cores: they share the machine's
        "VLLM_CPU_KVCACHE_SPACE": str(cache_gb),  # GiB
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    size = sum(member.bytes for member in members)  # of one GPU's memory by the bytes of weights
    shares = [int(GPU_SHARE * member.bytes / size * 1000) / 1000 for member in members]
    pairs = zip(members, shares, strict=True)
    return {
        "described": described,
        "metadata": yaml.safe_dump(_metadata(described), sort_keys=False).strip(),
        "shown": ("trust", *shown_benchmarks(described.scores.search), "refusal_rate"),
        "local": local,
        "members": members,
        "servers": [] if local else [_server_arguments(described, *pair) for pair in pairs],
        "shares": shares,
        "settings": _settings(described),
        "environment": QUIET if described.target == "cuda" else QUIET | cpu,
        "image": VLLM.get(described.target, ""),
        "front": FRONT,
        "front_arguments": _front_arguments(described),
        "port": PORT,
        "mount": INSIDE,
        # Dense weights at worst; the gateway holds none, the one process of target local holds all.
        "server_gb": math.ceil(dense_gb + cache_gb + OVERHEAD_GB),
        "front_gb": math.ceil(len(members) * dense_gb + OVERHEAD_GB) if local else 1,
    }


def _read_by(member: MemberInfo) -> str:
    """What loads a member's files."""
    storage = method_of(str(member.variant["method"])).storage
    if member.form == "stored" and storage == "uniform":
        any_version = member.variant["bits"] in (2, 4, 8)  # how they are packed has not changed
        return f"compressed-tensors {'of any version' if any_version else '0.18 or newer'}"
    if any(name.endswith(".gguf") for name in member.files):
        return "llama.cpp"
    return "ptsearch" if storage == "codes" and member.form == "stored" else "transformers"


def _metadata(described: Description) -> dict[str, object]:
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
        "model-index": [_results(described)],
    }


def _results(described: Description) -> dict[str, object]:
    """The verdict and the held-out scores as the hub shows them."""
    scores = described.scores.holdout or {}
    metrics: list[dict[str, object]] = [
        {"type": key, "name": f"{key}, held out, percent", "value": round(scores[key], 2)}
        for key in ("trust", *shown_benchmarks(scores), "refusal_rate")
        if key in scores
    ]
    metrics.append({"type": "verdict", "name": "held-out verdict", "value": described.verdict})
    name = described.benchmarks or "ptsearch"
    return {
        "name": described.study or FRONT,
        "results": [
            {
                "task": {"type": "text-generation"},
                "dataset": {"type": name, "name": f"ptsearch {name}", "split": "held out"},
                "metrics": metrics,
            }
        ],
    }


def _front_arguments(described: Description) -> list[str]:
    """Of ptsearch in a container."""
    place = [
        f"serve.dir={INSIDE}",
        "serve.host=0.0.0.0",
        f"serve.port={PORT}",
        "runs_dir=/tmp/runs",
    ]
    if described.in_process:
        return ["+serve=local", *place]
    hosts = [f"http://ptsearch-member-{i}:{PORT}/v1" for i in range(len(described.members))]
    return ["+serve=gateway", f"serve.engines=[{','.join(hosts)}]", *place]


def _server_arguments(described: Description, member: MemberInfo, share: float) -> list[str]:
    """Of a member's server in a container; `share` of a GPU's memory."""
    place = ["--model", f"{INSIDE}/{member.folder}", "--served-model-name", member.label]
    gpu = ["--gpu-memory-utilization", str(share)] if described.target == "cuda" else []
    return [*place, "--host", "0.0.0.0", "--port", str(PORT), *_settings(described), *gpu]


def _settings(described: Description) -> list[str]:
    """Greedy replies are the model's own: no penalty of the checkpoint's generation config."""
    context = str(described.settings["memory.context"])
    common = ["--dtype", "bfloat16", "--max-model-len", context, "--generation-config", "vllm"]
    return common + (["--enforce-eager"] if described.target == "cpu" else [])


def license_of(source: str, base: Path) -> str:
    """The license in the base model's card; "other" where there is none to read."""
    if source == "wheel":
        return "apache-2.0"
    try:
        _, front, _ = (base / "README.md").read_text(encoding="utf-8").split("---", 2)
        return str(yaml.safe_load(front)["license"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return "other"
