"""Calibration text: cut, drawn and identified."""

import json
from dataclasses import replace
from pathlib import Path

import hub_server
import huggingface_hub
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import byte_tokenizer

from ptsearch.benchmarks import hub
from ptsearch.config import CalibrationConfig
from ptsearch.pool import calibration
from ptsearch.pool.calibration import Calibration


def test_python_docs_are_long_enough_for_the_defaults() -> None:
    found = calibration.read(CalibrationConfig())
    assert (found.samples, found.length) == (32, 512)
    assert len(found.fitted) > 200_000
    assert found.fitted + found.held_out == found.text


def test_identity_names_text_samples_and_length() -> None:
    same = Calibration("text", 2, 8)
    others = [Calibration("texts", 2, 8), Calibration("text", 3, 8), Calibration("text", 2, 9)]
    assert Calibration("text", 2, 8).identity == same.identity
    assert len({same.identity, *(other.identity for other in others)}) == 4


@given(st.integers(1, 40), st.integers(0, 5))
def test_chunks_are_the_text_in_order(length: int, seed: int) -> None:
    text = "x" * seed + "The quick brown fox jumps over the lazy dog. " * 3
    tokenizer = byte_tokenizer()
    cut = calibration.chunks(tokenizer, text, length)
    ids = tokenizer(text)["input_ids"]
    assert cut.shape == (len(ids) // length, length)
    assert cut.flatten().tolist() == ids[: cut.numel()]


@given(st.integers(1, 50), st.integers(0, 9), st.data())
def test_a_seed_draws_distinct_samples_again_and_again(
    available: int, seed: int, data: st.DataObject
) -> None:
    samples = data.draw(st.integers(1, available))
    drawn = calibration.draw(available, samples, seed)
    assert drawn == calibration.draw(available, samples, seed)
    assert len(set(drawn)) == samples
    assert all(0 <= index < available for index in drawn)


def test_too_little_text_says_so() -> None:
    with pytest.raises(ValueError, match=r"holds 3 samples, calibration.samples=4"):
        calibration.draw(3, 4, 0)


def test_files(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_text("Grüße\nworld", encoding="utf-8")
    assert read(plain).text == "Grüße\nworld"
    lines = tmp_path / "b.jsonl"
    lines.write_text('{"text": "one"}\n\n{"text": "two", "id": 2}\n')
    assert read(lines).text == "one\n\ntwo"


@pytest.mark.parametrize("line", ["not json", '{"txt": "x"}', '{"text": 3}', '["text"]'])
def test_a_bad_line_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "b.jsonl"
    path.write_text('{"text": "one"}\n' + line)
    with pytest.raises(ValueError, match="line 2"):
        read(path)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a file"):
        read(tmp_path / "absent.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ValueError, match="no text"):
        read(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"abc\xff")
    with pytest.raises(ValueError, match="not UTF-8 text at byte 3"):
        read(tmp_path / "latin.txt")


NO = {"role": "assistant", "content": "No."}
TALKS = [{"messages": [{"role": "user", "content": f"Is {n} odd?"}, NO]} for n in range(0, 40, 2)]


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_conversations_go_through_the_chat_template(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    if suffix == "jsonl":
        path.write_text("\n".join(map(json.dumps, [*TALKS, {"text": "Hello."}])), encoding="utf-8")
    else:
        pq.write_table(pa.Table.from_pylist(TALKS), path)
    settings = CalibrationConfig(source="file", path=str(path), rendering="chat", length=16)
    found, tokenizer = calibration.read(settings), byte_tokenizer()
    whole = [calibration.chunks(tokenizer, part, 1, "chat").flatten().tolist()
             for part in (found.fitted, found.held_out)]  # fmt: skip
    text = "".join(tokenizer.decode(ids) for ids in whole)
    assert text.startswith("<|user|>Is 0 odd?<|end|><|assistant|>No.<|end|><|user|>Is 2 odd?")
    assert text.count("<|assistant|>") == len(TALKS)
    assert text.endswith("<|user|>Hello.<|end|>") == (suffix == "jsonl")
    assert found.identity != calibration.read(replace(settings, rendering="raw")).identity
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template: choose calibration\.rendering=raw"):
        calibration.chunks(tokenizer, found.fitted, 16, "chat")


def test_a_file_of_a_hub_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = hub_server.Served({"me/texts/data/a.jsonl": b'{"text": "one"}\n{"text": "two"}'})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    settings = CalibrationConfig(source="hub", repo="me/texts", revision="0" * 40,
                                 path="data/a.jsonl")  # fmt: skip
    with hub_server.serve(served) as endpoint:
        monkeypatch.setattr(hub, "HUB", hub.Hub(endpoint, tmp_path))
        assert calibration.read(settings).text == "one\n\ntwo"
        with pytest.raises(ConnectionError, match=r"b\.jsonl"):
            calibration.read(replace(settings, path="b.jsonl"))
    assert calibration.read(settings).text == "one\n\ntwo"  # from the hub's own cache
    with pytest.raises(ValueError, match=r"calibration\.repo=OWNER/NAME"):
        calibration.read(CalibrationConfig(source="hub", path="a.txt"))


def read(path: Path) -> Calibration:
    return calibration.read(CalibrationConfig(source="file", path=str(path)))


def test_chunks_of_nothing() -> None:
    assert calibration.chunks(byte_tokenizer(), "ab", 4).shape == (0, 4)
    assert torch.is_tensor(calibration.chunks(byte_tokenizer(), "abcd", 4))
