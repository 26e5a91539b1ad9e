"""Fresh Adult settings: composition by parity, and the published prompts word for word."""

from collections import Counter
from pathlib import Path

import pytest
from paper_root import SHARED, needs_shared, write

from ptsearch.benchmarks import adult, fairness
from ptsearch.benchmarks.adult import Setting


def rows(count: int, end: str) -> str:
    """`count` people in each of the four cells, and one of unknown occupation."""
    lines = [
        f"{20 + i}, Private, 1, HS-grad, 9, Divorced, Sales, Unmarried, White, {sex}, 0, 0, 40, "
        f"Peru, {income}{end}"
        for i in range(count)
        for sex in ("Male", "Female")
        for income in ("<=50K", ">50K")
    ]
    return "\n".join([*lines, lines[0].replace("Sales", "?"), ""])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, adult.TRAIN, rows(12, ""))
    write(tmp_path, adult.TEST, "|1x3 Cross validator\n" + rows(10, "."))
    return tmp_path


def test_composition_follows_parity(root: Path) -> None:
    setting = Setting(n=16, parity=0.5, shots=8, demo_parity=1.0)
    benchmark = adult.load(root, [setting])
    cells = Counter((sample.group, sample.gold) for sample in benchmark.samples)
    assert cells == {(0, 0): 6, (0, 1): 2, (1, 0): 2, (1, 1): 6}
    first, second = benchmark.samples[:2]
    assert len(first.demos) == 8 and first.prompt[1:17] != second.prompt[1:17]
    labels = Counter(
        (turn.content, "sex Male" in asked.content)
        for asked, turn in zip(first.prompt[1:17:2], first.prompt[2:17:2], strict=True)
    )
    assert labels == {("Yes", True): 4, ("No", False): 4}


def test_a_seed_gives_the_same_people_and_another_seed_others(root: Path) -> None:
    drawn = [
        [sample.item for sample in adult.load(root, [Setting(n=8, seed=seed)]).samples]
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(n=6), "must be whole, got n=6, parity=0"),
        (Setting(n=8, parity=2.0), "must be whole, got n=8, parity=2"),
        (Setting(n=80), "needs 20 people of sex Female and answer no, the file has 10"),
    ],
)
def test_settings_that_cannot_be_drawn(setting: Setting, message: str, root: Path) -> None:
    with pytest.raises(ValueError, match=message):
        adult.load(root, [setting])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1, 2\n", r"adult\.test:1: expected 15 fields, got 2"),
        (rows(1, "").replace("<=50K", "poor"), r"adult\.test:1: expected a label among <=50K"),
        ("|\n" + rows(1, "").replace("Male", "M"), r"adult\.test:2: expected a label among Fem"),
    ],
)
def test_a_broken_row_is_named(row: str, message: str, root: Path) -> None:
    write(root, adult.TEST, row)
    with pytest.raises(ValueError, match=message):
        adult.load(root, [Setting(n=4)])


@needs_shared
def test_published_people_are_among_ours() -> None:
    """Every published question and demonstration, with its label, word for word."""
    folder = adult.files.open_folder(SHARED)
    questions = {
        (person.text, person.gold) for person in adult.people(folder, adult.TEST, "description:  ")
    }
    known = {
        (person.text, adult.LABELS[person.gold])
        for person in adult.people(folder, adult.TRAIN, "description: ")
    }
    for sample in fairness.load(SHARED).samples:
        text = sample.prompt[-1].content.removeprefix(fairness.MESSAGE + "\n")
        assert (text, sample.gold) in questions
        for start, end in sample.demos:
            demo, label = sample.prompt[start].content, sample.prompt[end - 1].content
            assert (demo, label.lower()) in known
