"""What identifies a study's answers, and a view of them: the trials of one view compare."""

from dataclasses import asdict

from ptsearch.benchmarks import item_hash
from ptsearch.benchmarks.parsing import VERSION as RULES_VERSION
from ptsearch.config import VoteConfig
from ptsearch.evaluation import evaluate
from ptsearch.evaluation.table import Table
from ptsearch.search.study import study_config


def identity(table: Table) -> dict[str, object]:
    """With another, a study is another view, or another study: see `study.ANSWERS`."""
    config = table.config
    search = asdict(study_config(config))
    changeable = ["name", "trials", "sampler", "seed", "need_skill"]
    if search["kind"] == "slo":
        changeable += ["min", "max"]  # one study answers any
    for key in changeable:
        del search[key]
    default_vote = config.vote.rule == VoteConfig().rule
    vote, veto = asdict(config.vote), config.vote.veto
    del vote["veto"]
    vote = {} if default_vote else vote
    if any(s.refusal == "veto" for b in table.benchmarks for s in b.scenarios.values()):
        vote["veto"] = veto
    views: dict[str, object] = {"vote": vote} if vote else {}
    return views | {
        "model": {"name": table.base.name, "revision": table.base.revision},
        "pool": {label: variant.id for label, variant in table.variants.items()},
        "benchmarks": {
            "rules": config.benchmarks.rules,
            "rules_version": RULES_VERSION,
            "prompt": config.benchmarks.prompt,
            "extract": table.reader.identity if table.reader else "rules",
            **({"template": config.benchmarks.template} if config.benchmarks.template else {}),
            **({"refusal": config.benchmarks.refusal} if config.benchmarks.refusal else {}),
            "limit": config.benchmarks.limit,
            "split": config.benchmarks.split.salt,
            "samples": {b.name: b.digest[:12] for b in table.benchmarks},
            "items": item_hash(*(s.item for b in table.benchmarks for s in b.samples))[:12],
        },
        "engine": {
            "dtype": config.engine.dtype,
            "version": evaluate.EVALUATE_VERSION,  # of how replies come about
            **({"device": config.engine.device} if config.engine.device == "cuda" else {}),
            **({"too_long": "error"} if config.engine.too_long == "error" else {}),
            **(
                {"name": "vllm", "form": config.engine.form} if config.engine.name == "vllm" else {}
            ),
        },
        "trust": asdict(config.trust),
        "cost": asdict(config.cost),
        "memory": asdict(config.memory),
        "latency": {**asdict(config.latency), "version": evaluate.LATENCY_VERSION},
        "study": search,
    }
