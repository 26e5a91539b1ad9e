"""The table on disk: whole or not at all, every sample once, one mode each."""

import pyarrow as pa
import pytest

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
    predictions.write(written, tmp_path / "p.parquet", {"dtype": "float32"})
    found = predictions.read(tmp_path / "p.parquet")
    assert found.to_pylist() == written.to_pylist()
    assert found.schema.metadata[b"dtype"] == b"float32"
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]
    assert predictions.changes(tmp_path / "p.parquet").demonstrations == 0
    predictions.write(written, tmp_path / "q.parquet", {"dropped_demonstrations": "7"})
    assert predictions.changes(tmp_path / "q.parquet").demonstrations == 7


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
        predictions.write(table(*rows), tmp_path / "p.parquet", {})
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_is_named(tmp_path) -> None:
    path = tmp_path / "p.parquet"
    path.write_bytes(b"PAR1 half a file")
    with pytest.raises(ValueError, match=r"p.parquet is not a predictions file"):
        predictions.read(path)
