"""Where an ensemble and the dense model differ: every sample with everybody's answer and reply."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ptsearch.benchmarks import Sample
from ptsearch.benchmarks.parsing import CONTRADICTORY, REFUSED, UNUSABLE
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.search.scorer import EnsembleScorer
from ptsearch.search.study import Members

WITHOUT_LABEL = {REFUSED: "refused", UNUSABLE: "unreadable", CONTRADICTORY: "contradictory"}
MOST = 2000  # samples that a page embeds
MOST_PROMPT, MOST_REPLY = 1000, 300  # characters of each there: a prompt's end, a reply's start


class Answered(NamedTuple):
    """All samples in the order of the benchmarks."""

    table: pa.Table  # `answer.NAME` and `reply.NAME` of the dense model and of all that may vote
    differs: NDArray[np.bool_]  # (samples,) whether some vote is not the dense model's answer


def answered(
    table: Table, parts: Mapping[str, EnsembleScorer], votes: Mapping[str, Members]
) -> Answered:
    """`votes`: the ensembles whose answers become columns `vote.NAME`."""
    samples = [sample for benchmark in table.benchmarks for sample in benchmark.samples]
    columns: dict[str, Sequence[str | None]] = {
        "benchmark": [b.name for b in table.benchmarks for _ in b.samples],
        "scenario": [sample.scenario for sample in samples],
        "sample": [sample.id for sample in samples],
        "half": np.where(parts["holdout"].mask, "held out", "search").tolist(),
        "prompt": [prompt_of(sample) for sample in samples],
        "gold": [answer(sample, sample.gold) for sample in samples],
    }
    dense = table.entries[DENSE].codes
    differs = np.zeros(len(samples), dtype=bool)
    for name, members in votes.items():
        codes = parts["all"].vote(table, members)
        differs |= codes != dense
        columns[f"vote.{name}"] = list(map(answer, samples, codes.tolist()))
    for label in (DENSE, *table.voters()):
        codes = table.entries[label].codes
        columns[f"answer.{label}"] = list(map(answer, samples, codes.tolist()))
        columns[f"reply.{label}"] = replies(table, label)
    return Answered(pa.table(columns), differs)


def embedded(found: Answered) -> dict[str, list[str | None]]:
    """At most `MOST` rows by column, shortened; those where a vote differs before the others."""
    first = np.argsort(~found.differs, kind="stable")[:MOST]
    columns: dict[str, list[str | None]] = found.table.take(np.sort(first)).to_pydict()
    for name, texts in columns.items():
        if name == "prompt":
            columns[name] = [_end(text or "") for text in texts]
        elif name.startswith("reply."):
            columns[name] = [text and text[:MOST_REPLY] for text in texts]
    return columns


def prompt_of(sample: Sample) -> str:
    if isinstance(sample.prompt, str):
        return sample.prompt
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in sample.prompt)


def _end(prompt: str) -> str:
    return prompt if len(prompt) <= MOST_PROMPT else "\u2026" + prompt[-MOST_PROMPT:]


def answer(sample: Sample, code: int) -> str:
    labels = sample.question.labels
    if code < 0:
        return WITHOUT_LABEL[code]
    return labels[code] if code < len(labels) else "abstains"


def replies(table: Table, label: str) -> list[str | None]:
    """Of generated replies; None where a label was chosen by its log-probability."""
    found: list[str | None] = []
    for benchmark, path in zip(table.benchmarks, table.outputs(label).values(), strict=True):
        known = path.exists()  # a variant that gave no finite output has none
        given = predictions.read(path)["reply"].to_pylist() if known else [None]
        found += given if known else given * len(benchmark.samples)
    return found
