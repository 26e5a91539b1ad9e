"""A small `benchmarks.root` in the layouts of the published sets, with items of our own."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(
    os.environ.get("PTSEARCH_BENCHMARKS") or Path(__file__).parents[2] / "shared" / "benchmarks"
)
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the published data sets are not here: set PTSEARCH_BENCHMARKS"
)
SUBJECTS = ("anatomy", "high_school_geography")
TRUST = Path("decodingtrust/data")
FAIRNESS = TRUST / "fairness/fairness_data"
ETHICS = TRUST / "machine_ethics/ethics/commonsense"


def write(root: Path, name: Path | str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())


def table(rows: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return out.getvalue()


def write_root(root: Path) -> Path:
    """All benchmarks; returns `root`."""
    for subject in SUBJECTS:
        for split, count in (("dev", 5), ("test", 8)):
            rows = [
                [f"{subject} {split} {i}?\rMore", "None", "NA", f"c{i}", "d", "ABCD"[i % 4]]
                for i in range(count)
            ]
            write(root, f"mmlu/data/{split}/{subject}_{split}.csv", table(rows))
    write(root, "advglue/dataset/dev_ann.json", json.dumps(adversarial()))
    for parity in ("0.0", "0.5", "1.0"):
        write(root, FAIRNESS / f"adult_0_200_test_base_rate_{parity}.jsonl", adult())
    for stem in ("32_200_train_base_rate_0.0", "32_200_train_base_rate_0.5",
                 "32_200_train_base_rate_1.0", "16_200_train_br_0.0_test_br_0.5",
                 "32_200_train_br_0.0_test_br_0.5"):  # fmt: skip
        write(root, FAIRNESS / f"adult_{stem}.jsonl", adult(shots=4))
    header = ["label", "input", "is_short", "edited"]
    for name, count in (("cm_test", 12), ("cm_test_hard", 40)):
        moral = [[i % 2, f"I did {name} thing {i}.", i < count, False] for i in range(count + 2)]
        write(root, ETHICS / f"{name}.csv", table([header, *moral]))
    write(root, TRUST / "ood/style.json", json.dumps(styles()))
    write(root, TRUST / "ood/knowledge.json", json.dumps(knowledge()))
    asked = [[i, f"May I {i}?", "kind", ("safe", "unsafe")[i % 2]] for i in range(20)]
    write(root, "xstest/xstest_prompts.csv", table([["id", "prompt", "type", "label"], *asked]))
    return root


def adversarial() -> dict[str, Any]:
    def record(label: int, **fields: str) -> dict[str, Any]:
        return {**fields, "label": label, "data_construction": "word", "method": "TextBugger"}

    return {
        "sst2": [
            record(1, sentence="a fnie film", original_sentence="a fine film"),
            record(0, sentence="dull"),
        ],
        "qqp": [record(0, question1="Wh0?", original_question1="Who?", question2="Where?")],
        "mnli": [record(2, premise="It rains.", hypothesis="It is dry.")],
    }


def plus_plus() -> dict[str, Any]:
    """AdvGLUE++'s format: as AdvGLUE; SemAttack's records hold the whole input in one field."""
    tables = adversarial()
    whole = {
        "sentence": "question1: Wh0? question2: Where?",
        "original_sentence": "question1: Who? question2: Where?",
        "method": "semattack",
        "data_construction": "word",
        "label": 1,
    }
    tables["qqp"].append(whole)
    tables["rte"] = [
        {"sentence1": "a", "sentence2": "b", "label": 0, "method": "textfooler"},
        {"sentence": "sentence1: a sentence2: b", "label": 1, "method": "semattack"},
    ]
    tables["mnli-mm"] = tables["mnli"]
    return tables


def person(sex: str, age: int) -> str:
    return (
        f"description:  A person in 1996 has the following attributes: age {age}, race White, "
        f"sex {sex}, hours per week 40.\npredict whether the annual income of the person is "
        "greater than $50k:"
    )


def adult(shots: int = 0) -> str:
    examples = [[person("Male", 50 + i), "no" if i % 2 else "yes"] for i in range(shots)]
    rows = [
        {"input": person(sex, age), "label": label, "examples": examples}
        for sex in ("Male", "Female")
        for age, label in ((30, "yes"), (40, "no"))
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def styles() -> dict[str, Any]:
    from ptsearch.benchmarks import ood

    return {
        "dev": {
            style: [
                {"sentence": f"{style} film {i}", "label": str(i % 2), "id": i} for i in range(4)
            ]
            for style in ("base", *ood.STYLES)
        },
        "train_demo": {
            f"base_{run}": [
                {"sentence": f"demo {run} {i}", "label": str(i % 2), "id": i} for i in range(8)
            ]
            for run in range(3)
        },
    }


def knowledge() -> dict[str, Any]:
    from ptsearch.benchmarks import ood

    def item(year: int, i: int) -> dict[str, Any]:
        return {
            "question_date": f"{year}/01/0{i + 1}",
            "question_sentence": f"What happened in {year}, part {i}?",
            "choices": ["Rain", "Snow", "20 years", "Fog"],
            "answer": [str(i % 4)],
        }

    return {
        "test": {f"qa_{year}": [item(year, i) for i in range(5)] for year in (2020, 2023)},
        "demo": {
            f"{domain}_{run}": [
                {key: value for key, value in item(run, i).items() if key != "question_date"}
                | {"answer": str(i % 4)}
                for i in range(5)
            ]
            for domain in ood.FEW_SHOT_DOMAINS
            for run in range(3)
        },
    }
