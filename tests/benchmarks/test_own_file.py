"""Own questions: three kinds of files give the same samples; bad rows say file and line."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command import ptsearch

from ptsearch.benchmarks import Benchmark, own_file, sources
from ptsearch.benchmarks.split import half
from ptsearch.config import BenchmarksConfig
from ptsearch.scoring import file_check

ROOT = Path(__file__).parents[2]
COMPLAINTS = ROOT / "examples" / "complaints.jsonl"
WORDS = ("apple", "boat", "cloud", "drum", "eagle", "fox", "grape", "hill", "ink", "jar", "kite",
         "lamp", "moon", "nest", "oak", "pen")  # fmt: skip
ROWS = [
    {"prompt": f"{word} {word[::-1]}?", "labels": ["no", "yes"], "gold": "no" if i % 2 else "yes"}
    for i, word in enumerate(WORDS)
]
CSV = "prompt,labels,gold\n"


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def checked(path: Path) -> str:
    return file_check.check(own_file.load(path), path, "ptsearch")


def changed(**fields: object) -> list[dict[str, object]]:
    return [*ROWS[:2], {**ROWS[2], **fields}, *ROWS[3:]]


def test_three_kinds_of_files_give_the_same_samples(tmp_path: Path) -> None:
    lines = jsonl(tmp_path / "mine.jsonl", ROWS)
    flat = [{**row, "labels": "|".join(row["labels"])} for row in ROWS]
    with (tmp_path / "mine.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["prompt", "labels", "gold", "item"])
        writer.writeheader()
        writer.writerows(flat)
    pd.DataFrame(ROWS).to_parquet(tmp_path / "mine.parquet")
    (one,) = own_file.load(lines)
    assert (one.name, one.source, list(one.scenarios)) == ("mine", "file", ["mine"])
    assert [s.gold for s in one.samples] == [1, 0] * 8
    for other in ("mine.csv", "mine.parquet"):
        (again,) = own_file.load(tmp_path / other)
        alike = [(s.prompt, s.item, s.question, s.gold, s.content) for s in again.samples]
        assert alike == [(s.prompt, s.item, s.question, s.gold, s.content) for s in one.samples]


def test_a_changed_file_is_another_benchmark(tmp_path: Path) -> None:
    (before,) = own_file.load(jsonl(tmp_path / "mine.jsonl", ROWS))
    (same,) = own_file.load(jsonl(tmp_path / "mine.jsonl", ROWS))
    (after,) = own_file.load(jsonl(tmp_path / "mine.jsonl", changed(gold="no")))
    assert before.digest == same.digest != after.digest  # gold alone has changed


def test_csv_cells_are_texts_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    cells = ['"a ""b""\nc",None|NA,NA', "nan,None|NA,None", "007,None|NA,0"]
    path.write_text(CSV + "\n".join(cells) + "\n", encoding="utf-8")
    (found,) = own_file.load(path)
    assert [s.prompt for s in found.samples] == ['a "b"\nc', "nan", "007"]
    assert found.samples[0].question.labels == ("None", "NA")
    assert [s.gold for s in found.samples] == [1, 0, 0]
    assert [s.id for s in found.samples] == ["2", "4", "5"]  # lines of the file


def test_a_row_says_more_of_itself(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be fair."}, {"role": "user", "content": "?"}]
    rows = [
        *changed(abstain_ok=True, gold=1),
        *({**row, "perspective": "other", "scenario": "chat", "mode": "generate", "item": str(i),
           "prompt": [*turns[:1], {"role": "user", "content": f"{row['prompt']} again"}]}
          for i, row in enumerate(ROWS)),
    ]  # fmt: skip
    mine, other = own_file.load(jsonl(tmp_path / "mine.jsonl", rows))
    assert [s.abstain_ok for s in mine.samples[1:4]] == [False, True, False]
    assert {s.question.abstain for s in mine.samples} == {own_file.ABSTAIN}
    scenario = other.scenarios["chat"]
    assert (other.name, scenario.mode, scenario.lead) == ("other", "generate", "")
    assert other.samples[0].prompt[0] == tuple(turns[0].values())


def test_what_prompts_share_does_not_make_them_alike(tmp_path: Path) -> None:
    long = " ".join(["Read the complaint and say whether it is justified:"] * 5)
    rows = [{**row, "prompt": f"{long} {row['prompt']} {long}"} for row in ROWS]
    config = BenchmarksConfig(name="file", path=str(jsonl(tmp_path / "mine.jsonl", rows)))
    (found,) = sources.load(config, tmp_path)
    assert len({s.item for s in found.samples}) == len(ROWS)


def test_duplicates_and_rewordings_fall_into_one_half(tmp_path: Path) -> None:
    again = [ROWS[0], {**ROWS[4], "prompt": f"{ROWS[4]['prompt']}!"}]
    path = jsonl(tmp_path / "mine.jsonl", [*ROWS, *again])
    config = BenchmarksConfig(name="file", path=str(path))
    (found,) = sources.load(config, tmp_path)
    halves = [half(s.item, "ptsearch") for s in found.samples]
    assert (halves[16], halves[17]) == (halves[0], halves[4])
    assert "* mine/mine: 1 exact duplicates" in checked(path)


def test_beside_the_embedded_questions_patterns_of_those_leave_it_whole(tmp_path: Path) -> None:
    path = str(jsonl(tmp_path / "mine.jsonl", ROWS))

    def load(*patterns: str) -> dict[str, Benchmark]:
        config = BenchmarksConfig(name="pocket", path=path, scenarios=list(patterns))
        return {b.name: b for b in sources.load(config, tmp_path)}

    assert list(load()) == ["mmlu", "adversarial", "fairness", "ethics", "ood", "mine"]
    assert len(load("income")["mine"].samples) == len(ROWS)


def test_groups_are_scored_for_fairness(tmp_path: Path) -> None:
    rows = [{**row, "group": "a" if i % 4 < 2 else "b"} for i, row in enumerate(ROWS)]
    path = jsonl(tmp_path / "mine.jsonl", rows)
    (found,) = own_file.load(path)
    assert found.scenarios["mine"].metric == "parity"
    assert [s.group for s in found.samples[:4]] == [0, 0, 1, 1]
    for row in rows:
        row["gold"] = "no" if row["group"] == "b" else row["gold"]
    message = r"mine.jsonl:3: expected 'yes' in group b on the \w+ half: fairness is not estimable"
    with pytest.raises(ValueError, match=message):
        checked(jsonl(path, rows))


NO_GOLD = [*ROWS[:2], {k: v for k, v in ROWS[2].items() if k != "gold"}, *ROWS[3:]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (NO_GOLD, ":3: expected one of no, yes, or its index, as gold, got None"),
        (changed(gold="maybe"), ":3: expected one of no, yes, or its index, as gold, got 'maybe'"),
        (changed(gold=2), ":3: expected one of no, yes, or its index"),
        (changed(gold=True), ":3: expected one of no, yes, or its index"),
        (changed(labels=["1", "2", "3"], gold=2), ":3: expected one of 1, 2, 3, or its index"),
        (changed(labels=["yes", "no"]), ":3: expected labels, mode, form and groups as in line 1"),
        (changed(labels=["no", "NO"]), ":3: expected a list of different texts"),
        (changed(labels="no|yes"), ":3: expected a list of different texts as labels"),
        (changed(mode="generate"), ":3: expected labels, mode, form and groups as in line 1"),
        (changed(prompt=[{"role": "user", "content": "?"}]), ":3: expected labels, mode, form"),
        (changed(prompt=" "), ":3: expected text, or turns up to the user's last as prompt"),
        (changed(prompt=[{"role": "model", "content": "?"}]), ":3: expected text, or turns up to"),
        (changed(prompt="\ud800"), ":3: expected text without surrogates as prompt"),
        (changed(perspective="ethics"), ":3: expected letters, digits and _, other than mmlu"),
        (changed(perspective="a b"), ":3: expected letters, digits and _, other than"),
        (changed(scenario="alone"), ":3: expected samples of mine/alone on both halves"),
        (changed(abstain_ok="perhaps"), ":3: expected true or false as abstain_ok"),
        (changed(group="a"), ":3: expected labels, mode, form and groups as in line 1"),
        ([{**r, "group": str(i)} for i, r in enumerate(ROWS)], ":1: expected two groups and two l"),
        ([*ROWS, {**ROWS[0], "item": "x"}], ":17: expected the item of line 1, which has the same"),
        (
            [{**row, "item": "x"} for row in ROWS],
            ":1: expected samples of mine/mine on both halves",
        ),
        ([], ":1: expected rows, got none"),
    ],
)
def test_a_bad_row_is_told_with_its_line(rows, message: str, tmp_path, monkeypatch, capfd) -> None:
    path = jsonl(tmp_path / "mine.jsonl", rows)
    assert ptsearch(monkeypatch, tmp_path, "+study=pareto", f"benchmarks.path={path}") == 2
    said = capfd.readouterr().err
    assert f"{path}{message}" in said
    assert len(said.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == [path]  # nothing was begun


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"prompt;labels;gold\n", ":1: expected different columns with"),
        ("a.csv", f'{CSV}"x\ny",a|b,a\nz,a|b\n'.encode(), ":4: expected 3 cells, got 2"),
        ("a.csv", f'{CSV}"x,a|b,a\n'.encode(), ":2: expected a row of CSV, got unexpected end"),
        ("a.csv", f"{CSV}caf\xe9,a|b,a\n".encode("latin-1"), ":2: expected UTF-8, got byte 0xe9"),
        ("a.jsonl", "{}\n".encode("utf-16"), ":1: expected UTF-8, got byte 0xff"),
        ("a.jsonl", b"{\n", ":1: expected JSON, got"),
        ("a.jsonl", b"[1]\n", ":1: expected text, or turns up to"),
        ("a.jsonl", b"[" * 200_000, ":1: expected JSON less deeply nested"),
        ("a.parquet", b"PAR1", ":1: expected Parquet with UTF-8, got"),
    ],
)
def test_a_bad_file_is_told_with_its_line(name, content, message, tmp_path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        own_file.load(path)
    assert str(error.value).startswith(f"{path}{message}")


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_a_huge_line_is_not_read(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with path.open("wb") as file:
        file.write(CSV.encode() if name == "a.csv" else b"\n")
        file.truncate(200_000_000)  # of NUL bytes, which take no room on the disk
    limit = 300_000_000  # bytes of address space on top of what imports take
    code = (
        "import resource, sys; from pathlib import Path; from ptsearch.benchmarks import own_file;"
        "size = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize();"
        f"resource.setrlimit(resource.RLIMIT_AS, (size + 50_000_000, {limit} + size));"
        "own_file.load(Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert f"{path}:2: expected at most 1,000,000 bytes a line" in done.stderr


def test_a_huge_cell_of_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pd.DataFrame([*ROWS[:2], {**ROWS[2], "prompt": "x" * 2_000_000}]).to_parquet(path)
    with pytest.raises(ValueError, match=r"a\.parquet:3: expected at most 1,000,000 bytes"):
        own_file.load(path)


def test_other_names_are_refused(tmp_path: Path, monkeypatch, capfd) -> None:
    path = jsonl(tmp_path / "mine.jsonl", ROWS)
    for overrides, message in (
        (("benchmarks=file",), "benchmarks.path must be a file of questions, got '.'"),
        (("benchmarks.path=x.jsonl",), "must be a file of questions, got 'x.jsonl'"),
        ((f"benchmarks.path={path}", "+trust.weights.mime=1"), "ethics, ood, mine, got 'mime'"),
        (("benchmarks=file", f"benchmarks.path={path}", "study.min.mmlu=1"), "gives mmlu"),
        (("+check=benchmark",), "benchmarks.path must be a file of questions, got '.'"),
    ):
        job = () if "+check=benchmark" in overrides else ("+study=pareto",)
        assert ptsearch(monkeypatch, tmp_path, *job, *overrides) == 2
        assert message in capfd.readouterr().err
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"must end with \.jsonl, \.csv, \.parquet"):
        own_file.load(tmp_path / "mine.txt")


def test_the_example_is_checked_without_torch(capfd, monkeypatch) -> None:
    code = (
        "import sys; from ptsearch import cli; cli.main();"
        "assert not {'torch', 'transformers', 'mlflow'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", code, "+check=benchmark", f"benchmarks.path={COMPLAINTS}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "complaints/complaints: 60 samples of 60 items, 30 search and 30 hold" in done.stdout
    assert "takes 1,960 held-out samples" in done.stdout


def test_what_a_check_warns_of(tmp_path: Path) -> None:
    rows = [{**row, "labels": ["notable", "no"], "gold": 0, "note": "x"} for row in ROWS]
    said = checked(jsonl(tmp_path / "mine.jsonl", rows))
    assert "* mine/mine: one class only on the search half" in said
    assert "labels that begin alike, told apart by later tokens: 'notable' and 'no'" in said
    assert "* mine.jsonl: columns that are not read: note" in said


def test_so_many_samples_find_the_gain_in_four_of_five_trials(rng: np.random.Generator) -> None:
    """McNemar's test on simulated pairs: 6 % right in one system alone, 4 % in the other alone."""
    n = file_check.samples_needed(0.02, 0.10)
    pairs = rng.multinomial(n, [0.06, 0.04, 0.90], size=4000)
    z = (pairs[:, 0] - pairs[:, 1]) / np.sqrt(pairs[:, 0] + pairs[:, 1])
    assert math.isclose((abs(z) > 1.96).mean(), 0.80, abs_tol=0.025)


def test_rows_of_a_cluster_are_resampled_together_and_keep_their_items(tmp_path: Path) -> None:
    rows = [{**row, "cluster": f"customer {i // 4}"} for i, row in enumerate(ROWS)]
    (one,) = own_file.load(jsonl(tmp_path / "mine.jsonl", rows))
    (plain,) = own_file.load(jsonl(tmp_path / "plain.jsonl", ROWS))
    assert [s.item for s in one.samples] == [s.item for s in plain.samples]
    assert len({s.resampled for s in one.samples}) == 4
    assert [s.resampled for s in plain.samples] == [s.item for s in plain.samples]
    assert "cluster" not in checked(tmp_path / "mine.jsonl")  # it is a column that is read
