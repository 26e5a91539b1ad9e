"""The table on disk: whole or not at all, every sample once, one mode each."""

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptsearch.evaluation import predictions

ROW = {
    "benchmark": "ood", "perspective": "ood", "scenario": "style", "sample": "1", "item": "i",
    "cluster": "i", "group": -1, "gold": 1, "n_labels": 2, "abstain_ok": False, "reply": "yes",
    "logprobs": None, "offsets": None, "seconds": 0.5,
}  # fmt: skip


def table(*rows: dict) -> pa.Table:
    return pa.Table.from_pylist([ROW | row for row in rows], schema=predictions.SCHEMA)


def test_reading_gives_what_was_written_and_the_metadata(tmp_path) -> None:
    written = table({}, {"sample": "2", "reply": None, "logprobs": [-0.5, -1.0]})
    predictions.write(written, tmp_path / "p" / "answers.parquet", {"dtype": "float32"})
    found = predictions.read(tmp_path / "p" / "answers.parquet")
    assert found.to_pylist() == written.to_pylist()
    assert found.schema.metadata[b"dtype"] == b"float32"
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert predictions.changes(tmp_path / "p" / "answers.parquet").demonstrations == 0
    predictions.write(written, tmp_path / "q" / "answers.parquet", {"dropped_demonstrations": "7"})
    assert predictions.changes(tmp_path / "q" / "answers.parquet").demonstrations == 7


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{}, {}], "twice"),
        ([{"reply": None}], "either a reply or logprobs"),
        ([{"logprobs": [0.0]}], "either a reply or logprobs"),
    ],
)
def test_a_broken_table_is_not_written(rows: list[dict], message: str, tmp_path) -> None:
    with pytest.raises(ValueError, match=message):
        predictions.write(table(*rows), tmp_path / "p" / "answers.parquet", {})
    assert not list(tmp_path.iterdir())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_any_flipped_bit_is_found_and_named(position: float, bit: int, tmp_path: Path) -> None:
    path = tmp_path / f"{position}-{bit}" / "answers.parquet"
    predictions.write(table({}, {"sample": "2", "reply": "no"}), path, {"dtype": "float32"})
    contents = bytearray(path.read_bytes())
    contents[int(position * len(contents))] ^= 1 << bit
    path.write_bytes(contents)
    for read in (predictions.read, predictions.changes):
        with pytest.raises(ValueError, match=r"answers.parquet: contents differ .*\n\(delete"):
            read(path)
