"""The hub path against a local stand-in: real layouts, and what goes wrong on the way."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import Served, serve
from huggingface_hub import constants
from paper_root import ETHICS, FAIRNESS, SUBJECTS, TRUST, plus_plus, write_root

from ptsearch.benchmarks import BENCHMARKS, Benchmark, adversarial, hub, sources
from ptsearch.config import BenchmarksConfig

TRUST_REPOSITORY = "AI-Secure/DecodingTrust"


# Columns are those of all rows, as `datasets` reads them; a split's file is where the card says.
EMPTY = dict.fromkeys(("sentence", "original_sentence", "question1", "original_question1"))
CARD = """---
license: cc-by-sa-4.0
configs:
- config_name: adv-glue-plus-plus
  data_files:
  - {split: sst2, path: adv/sst2.jsonl}
  - {split: qqp, path: [adv/qqp.jsonl]}
  - {split: mnli, path: adv/mnli.jsonl}
  - {split: rte, path: adv/rte.jsonl}
  - {split: mnli_mm, path: adv/mnli-mm.jsonl}
- config_name: ood
  data_files:
  - {split: style, path: ood/style.jsonl}
  - {split: knowledge, path: ood/knowledge.jsonl}
---
# DecodingTrust
"""


def parquet(rows: list[dict[str, object]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue()


def mmlu_rows(root: Path, split: str) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for subject in SUBJECTS:
        with (root / f"mmlu/data/{split}/{subject}_{split}.csv").open(newline="") as file:
            for question, *choices, letter in csv.reader(file):
                row = {"question": question, "subject": subject, "choices": choices}
                rows.append({**row, "answer": "ABCD".index(letter)})
    return rows


def ood_lines(root: Path, name: str) -> str:
    """Rows with a category, and unified names of fields."""
    lines = []
    for table in json.loads((root / TRUST / f"ood/{name}.json").read_text()).values():
        for category, rows in table.items():
            for row in rows:
                unified = {"category": category, "answer": row.get("label")} | row
                unified["question_sentence"] = row.get("sentence", row.get("question_sentence"))
                lines.append(json.dumps(unified))
    return "\n".join(lines)


def hub_files(root: Path) -> dict[str, bytes]:
    """The files of `root` as the repositories hold them."""
    served: dict[str, bytes] = {
        f"cais/mmlu/all/{split}-00000-of-00001.parquet": parquet(mmlu_rows(root, split))
        for split in ("dev", "test")
    }
    served[f"{TRUST_REPOSITORY}/README.md"] = CARD.encode()
    for task, rows in plus_plus().items():
        lines = [
            json.dumps(EMPTY | row | {"model": m}) for m in adversarial.SOURCES for row in rows
        ]
        served[f"{TRUST_REPOSITORY}/adv/{task}.jsonl"] = "\n".join(lines).encode()
    for path in (root / FAIRNESS).iterdir():
        served[f"{TRUST_REPOSITORY}/fairness/fairness_data/{path.name}"] = path.read_bytes()
    for ours, theirs in (("cm_test", "test"), ("cm_test_hard", "train")):
        content = (root / ETHICS / f"{ours}.csv").read_bytes()
        served[f"hendrycks/ethics/data/commonsense/{theirs}.csv"] = content
    for name in ("style", "knowledge"):
        served[f"{TRUST_REPOSITORY}/ood/{name}.jsonl"] = ood_lines(root, name).encode()
    return served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_root(tmp_path / "root")


@pytest.fixture
def served(root: Path) -> Served:
    files = hub_files(root)
    return Served(files, large={name for name in files if name.endswith(".parquet")})


@pytest.fixture
def source(served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hub.Hub]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with serve(served) as endpoint:
        yield hub.Hub(endpoint, tmp_path / "hub")


def fetch(name: str, folder: Path, source: hub.Hub) -> Path:
    return hub.fetch(BENCHMARKS[name], folder, source)


def load(name: str, root: Path) -> Benchmark:
    return sources.load_published(BENCHMARKS[name], root)


@pytest.mark.parametrize("name", ["mmlu", "fairness", "ood"])
def test_the_hub_gives_the_samples_of_the_root(
    name: str, root: Path, source: hub.Hub, tmp_path: Path
) -> None:
    ours = load(name, fetch(name, tmp_path / "out", source))
    assert ours.samples == load(name, root).samples


def test_ethics_has_its_training_set(source: hub.Hub, tmp_path: Path) -> None:
    benchmark = load("ethics", fetch("ethics", tmp_path / "out", source))
    assert not benchmark.notes and "few-shot" in benchmark.scenarios


def test_adversarial_is_advglue_plus_plus(source: hub.Hub, tmp_path: Path) -> None:
    folder = fetch("adversarial", tmp_path / "out", source)
    benchmark = load("adversarial", folder)
    assert len(benchmark.scenarios) == 15 and not benchmark.notes
    assert [s.prompt for s in benchmark.samples if s.scenario == "vicuna.qqp"] == [
        s.prompt for s in benchmark.samples if s.scenario == "alpaca.qqp"
    ]
    assert json.loads((folder / adversarial.PLUS_PLUS / "vicuna.json").read_text())["mnli"] == [
        row | {"model": "vicuna"} for row in plus_plus()["mnli"]
    ]


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "name: adv-glue-plus-plus",
            "name: adv",
            "no configuration 'adv-glue-plus-plus'; it has a",
        ),
        ("split: qqp", "split: qpp", "no split 'qqp'; it has sst2, qpp"),
        ("path: adv/sst2.jsonl", "path: adv/*.jsonl", "expected one file for adv-glue-plus-plus/s"),
        ("adv/mnli.jsonl", "ood/style.jsonl", "style.jsonl:1: expected text under 'model', got No"),
    ],
)
def test_a_card_that_does_not_fit(
    before: str, after: str, message: str, served: Served, source: hub.Hub, tmp_path: Path
) -> None:
    served.files[f"{TRUST_REPOSITORY}/README.md"] = CARD.replace(before, after).encode()
    with pytest.raises(ValueError, match=message):
        fetch("adversarial", tmp_path / "out", source)


def test_what_was_downloaded_is_recorded(
    served: Served, source: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the checksums of the converted files, those of the hub's own."""
    monkeypatch.setattr(hub, "HUB", source)
    monkeypatch.setattr(hub.fetch, "__defaults__", (source,))
    for benchmark in sources.load(BenchmarksConfig(name="paper"), tmp_path / "cache"):
        from_hub = {key: value for key, value in benchmark.data.items() if "@" in key}
        assert from_hub and len(from_hub) < len(benchmark.data)
        for key, digest in from_hub.items():
            repository, name = key.split("@")[0], key.split("/", 2)[2]
            content = served.files[f"{repository}/{name}"]
            assert digest == hashlib.sha256(content).hexdigest()


def test_advglue_stands_in_where_the_repository_is_gated(
    served: Served, source: hub.Hub, tmp_path: Path
) -> None:
    served.gated.add(TRUST_REPOSITORY)
    for name in adversarial.ADV_GLUE_NAMES.values():
        rows: list[dict[str, object]] = [
            {"sentence": "a", "question": "b", "question1": "c", "question2": "d", "premise": "e",
             "hypothesis": "f", "sentence1": "g", "sentence2": "h", "label": 1, "idx": 0}
        ]  # fmt: skip
        key = f"AI-Secure/adv_glue/{name}/validation-00000-of-00001.parquet"
        served.files[key] = parquet(rows)
        served.large.add(key)
    benchmark = load("adversarial", fetch("adversarial", tmp_path / "out", source))
    assert set(benchmark.scenarios) == set(adversarial.ADV_GLUE_NAMES)
    assert "AdvGLUE++" in benchmark.notes[0]
    with pytest.raises(
        ConnectionError, match="accept its terms on its page on the hub and set HF_"
    ):
        fetch("fairness", tmp_path / "out", source)


def test_offline_with_a_warm_cache(
    served: Served, source: hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch("ethics", tmp_path / "one", source)
    asked = len(served.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load("ethics", fetch("ethics", tmp_path / "two", source)).samples
    assert len(served.requests) == asked
    with pytest.raises(ConnectionError, match="is not in the cache and the hub was not reached"):
        fetch("ood", tmp_path / "two", source)


def test_converted_once(served: Served, source: hub.Hub, tmp_path: Path) -> None:
    first = fetch("ethics", tmp_path / "out", source)
    asked = len(served.requests)
    assert fetch("ethics", tmp_path / "out", source) == first
    assert len(served.requests) == asked


@pytest.mark.parametrize("file", ["hendrycks/ethics/data/commonsense/train.csv"])
def test_a_dropped_connection_leaves_nothing_behind(
    file: str, served: Served, source: hub.Hub, tmp_path: Path
) -> None:
    served.broken.add(file)
    with pytest.raises(ConnectionError, match=r"could not get hendrycks/ethics/.*train\.csv"):
        fetch("ethics", tmp_path / "out", source)
    assert not list((tmp_path / "out").glob("*"))
    served.broken.clear()
    assert load("ethics", fetch("ethics", tmp_path / "out", source)).samples


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("mmlu", "cais/mmlu/all/test-00000-of-00001.parquet"),
        ("ood", f"{TRUST_REPOSITORY}/ood/style.jsonl"),
    ],
)
def test_a_checksum_that_does_not_match(
    name: str, file: str, served: Served, source: hub.Hub, tmp_path: Path
) -> None:
    served.wrong.add(file)
    with pytest.raises(ValueError, match=r"checksum .* is not .* the damaged copy was removed"):
        fetch(name, tmp_path / "out", source)
    assert not list((tmp_path / "out").glob("*"))
    served.wrong.clear()
    assert load(name, fetch(name, tmp_path / "out", source)).samples


def test_no_such_file(served: Served, source: hub.Hub, tmp_path: Path) -> None:
    del served.files["hendrycks/ethics/data/commonsense/test.csv"]
    with pytest.raises(ConnectionError, match=r"could not get hendrycks/ethics/.*test\.csv"):
        fetch("ethics", tmp_path / "out", source)
