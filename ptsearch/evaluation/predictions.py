"""The predictions table: what one variant said to each sample of one benchmark.

Raw output only, never depending on scoring rules. One Parquet file per (variant, benchmark), in a
folder with its checksum.
"""

from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from ptsearch import store

SCHEMA = pa.schema(
    [
        ("benchmark", pa.string()),
        ("perspective", pa.string()),
        ("scenario", pa.string()),
        ("sample", pa.string()),
        ("item", pa.string()),
        ("cluster", pa.string()),  # what a bootstrap resamples
        ("group", pa.int8()),  # sensitive attribute, -1 none
        ("gold", pa.int16()),
        ("n_labels", pa.int16()),
        ("abstain_ok", pa.bool_()),
        ("reply", pa.string()),  # generate mode
        ("logprobs", pa.list_(pa.float32())),  # choice mode, nats; abstaining last where offered
        ("offsets", pa.list_(pa.float32())),  # choice mode: the calibration to subtract
        ("seconds", pa.float32()),  # of scoring, this sample's share of its batch
    ]
)


def check(table: pa.Table) -> None:
    """Every sample once, answered in exactly one mode, with a gold code within its labels."""
    if table.schema.remove_metadata() != SCHEMA:
        raise ValueError(f"columns must be {SCHEMA.names}, got {table.schema.names}")
    samples = table["sample"].to_pylist()
    if len(set(samples)) != len(samples):
        raise ValueError("a sample stands twice in the predictions")
    rows = zip(table["reply"].is_null(), table["logprobs"].is_null(), strict=True)
    for sample, (no_reply, no_logprobs) in zip(samples, rows, strict=True):
        if no_reply.as_py() == no_logprobs.as_py():
            raise ValueError(f"sample {sample} must have either a reply or logprobs")


def write(table: pa.Table, path: Path, metadata: dict[str, str]) -> None:
    """Write the file and its folder; `metadata` goes into the file's schema."""
    check(table)
    with store.new_folder(path.parent) as part:
        pq.write_table(
            table.replace_schema_metadata(metadata), part / path.name, compression="zstd"
        )


class Changes(NamedTuple):
    """What was left out of prompts and replies, as a file's metadata has it."""

    demonstrations: int  # of prompts beyond the context
    thoughts: int  # replies that began with a block of thoughts


def changes(path: Path) -> Changes:
    found = pq.read_schema(store.intact(path)).metadata or {}
    keys = (b"dropped_demonstrations", b"thoughts")
    return Changes(*(int(found.get(key, 0)) for key in keys))


def read(path: Path) -> pa.Table:
    """The table at `path`. ValueError: it is not as it was written."""
    table = pq.read_table(store.intact(path))
    check(table)
    return table
