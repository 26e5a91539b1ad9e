"""What a study records of its front, enough to export an ensemble of it later."""

from dataclasses import asdict
from typing import Any

from ptsearch.deploy import replay_log
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.models import base_model
from ptsearch.report import rows as results
from ptsearch.report.study import Result
from ptsearch.search import study as studies
from ptsearch.search.objectives import chosen_objectives
from ptsearch.search.scorer import EnsembleScorer


def for_export(
    table: Table, scorers: tuple[EnsembleScorer, EnsembleScorer], result: Result
) -> dict[str, Any]:
    """What the study records of itself, enough to export its front later."""
    variants = {}
    for label in table.variants:
        fields = asdict(table.variant(label))
        variants[label] = {"id": table.variant(label).id, "fields": fields}
    config, dense = table.config, result.compared[0]
    return {
        "base": {
            "source": config.model.source,
            "repo": base_model.WHEEL_REPO if config.model.source == "wheel" else config.model.repo,
            "path": str(table.base.path),
            "memory_gb": dense.search["memory_gb"],
            "kv_bytes": table.entries[DENSE].meta["kv_bytes"],
            "benchmarks": config.benchmarks.name,
        },
        "verify": replay_log.record(table),
        "ask": {  # whom to ask when
            row.run_id: [row.members[i] for i in scorers[0].lazily(table, row.members).order]
            for row in result.front
        },
        "front": [asdict(row) for row in result.front],
        "objectives": chosen_objectives(studies.study_config(table.config)),
        "variants": variants,
        "data": results.data_hashes(table),
    }
