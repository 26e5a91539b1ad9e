"""What a study records of its front: enough to export an ensemble of it later."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Literal

from pydantic import Field, ValidationError

from ptsearch.benchmarks.prompts import was_turns
from ptsearch.deploy import replay_log
from ptsearch.deploy.description import Record, Scores
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.models import base_model
from ptsearch.report import rows
from ptsearch.report.study import Result
from ptsearch.search.scorer import EnsembleScorer


class BaseRecord(Record):
    """The uncompressed model."""

    source: str
    repo: str
    path: str
    memory_gb: float
    kv_bytes: int
    benchmarks: str
    texts: str = "text"  # what most samples were, see `ChatInfo`


class FrontRecord(Record, extra="ignore"):
    """One ensemble of the front."""

    members: list[str]
    run_id: str
    search: Scores
    holdout: Scores | None = None
    certificate: dict[str, object]
    unskilled: list[str] = Field(default_factory=list)
    picks: list[str]
    latency: dict[str, dict[str, float]]  # way of asking -> percentile -> ms


class VariantRecord(Record):
    """A variant of the pool; `fields` are those of `Variant`."""

    id: str
    fields: dict[str, object]


class StudyRecord(Record, extra="ignore"):
    """Attributes of an Optuna study that an export needs; `settings` are recorded by the search."""

    version: Literal[1] = 1  # of this record; one without a version is of version 1
    base: BaseRecord
    verify: str = ""  # name of the recorded answers, see `replay_log`; "" = none
    ask: dict[str, list[str]]  # run id -> its members in the order of lazy asking
    front: list[FrontRecord]
    variants: dict[str, VariantRecord]
    settings: dict[str, object]
    data: dict[str, object] = Field(default_factory=dict)


def read_record(attributes: Mapping[str, object], name: str) -> StudyRecord:
    """The record among a study's attributes. ValueError: not finished, or of another version."""
    if "front" not in attributes:
        raise ValueError(f"study {name!r} has not finished; run it first")
    try:
        return StudyRecord.model_validate(attributes)
    except ValidationError as error:
        field = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ValueError(
            f"study {name!r} was recorded by another version ({field}: "
            f"{error.errors()[0]['msg']}); run it again, it resumes"
        ) from None


def _asked_in_turns(table: Table) -> bool:
    """Whether most samples are chat turns, or were before `benchmarks.prompt` made text of them."""
    form = table.config.benchmarks.prompt
    turns = [was_turns(sample.prompt, form) for b in table.benchmarks for sample in b.samples]
    return 2 * sum(turns) > len(turns)


def for_export(table: Table, scorer: EnsembleScorer, result: Result) -> dict[str, object]:
    """The attributes that `read_record` reads; the study has `settings` already."""
    config, dense = table.config, result.compared[0]
    variants = {label: table.variant(label) for label in table.variants}
    return {
        "version": 1,
        "base": {
            "source": config.model.source,
            "repo": base_model.WHEEL_REPO if config.model.source == "wheel" else config.model.repo,
            "path": str(table.base.path),
            "memory_gb": dense.search["memory_gb"],
            "kv_bytes": table.entries[DENSE].cost.kv_bytes,
            "benchmarks": config.benchmarks.name,
            "texts": "turns" if _asked_in_turns(table) else "text",
        },
        "verify": replay_log.record(table),
        "ask": {
            row.run_id: [row.members[i] for i in scorer.lazily(table, row.members).order]
            for row in result.front
        },
        "front": [asdict(row) for row in result.front],
        "variants": {
            label: {"id": variant.id, "fields": asdict(variant)}
            for label, variant in variants.items()
        },
        "data": rows.data_hashes(table),
    }
