"""The answer of a study: picks, sentences, and the terminal that shows them."""

import io
from dataclasses import replace

import pytest
from fakes import fake_table
from rich.console import Console

from ptsearch.evaluation.table import Table
from ptsearch.report import answer as answers
from ptsearch.report import certificate, terminal
from ptsearch.report.answer import AS_GOOD, BEST_TRUST, KNEE
from ptsearch.report.study import Result, compile_result
from ptsearch.search.comparisons import Gain, gains
from ptsearch.search.exact_front import find_exact_front
from ptsearch.search.fronts import Front
from ptsearch.search.scorer import scorers
from ptsearch.search.study import CompletedTrial, open_study


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> tuple[Table, Result]:
    folder = tmp_path_factory.mktemp("answer")
    table = fake_table(folder, samples=240)
    for label in table.variants:  # 3 bits are wrong twice as often as the others
        entry = table.entries[label]
        if entry.variant.bits == 3:
            entry.codes[::3] = 0
    table.entries["none"].codes[:] = table.entries["v4-8b"].codes
    parts = scorers(table)
    exact = find_exact_front(table, parts["search"])
    study = open_study(table.config, f"sqlite:///{folder}/optuna.db", {})
    chosen = [CompletedTrial(i, members, f"r{i}") for i, members in enumerate(exact.front)]
    return table, compile_result(table, [], study, parts, Front(exact, chosen))


@pytest.fixture
def result(found) -> Result:
    return found[1]


def test_picks_are_made_on_the_search_half(result) -> None:
    picks = result.answer.picks
    assert set(picks) == {KNEE, BEST_TRUST, AS_GOOD}
    assert picks[BEST_TRUST].search["trust"] == max(row.search["trust"] for row in result.front)
    smaller = [row for row in result.front
               if row.search["memory_gb"] < picks[AS_GOOD].search["memory_gb"]]  # fmt: skip
    assert all(row.picks != (AS_GOOD,) for row in smaller)


def test_the_first_question_is_the_trust_of_the_picks(found) -> None:
    """Fewer intervals at once are narrower ones."""
    table, result = found
    baselines = {"dense": ("none",), "best_single": result.compared[1].members}
    ensembles = [row.members for row in result.front]
    together = gains(table, scorers(table)["holdout"], ensembles, baselines)
    for row, every in zip(result.front, together, strict=True):
        gain, one_of_all = row.gains["dense"]["trust"], every["dense"]["trust"]
        assert gain.estimate == pytest.approx(one_of_all.estimate)
        reach, of_all = gain.high - gain.low, one_of_all.high - one_of_all.low
        assert reach < 0.9 * of_all if row.picks else reach == of_all
        assert row.gains["dense"]["mmlu"] == every["dense"]["mmlu"]


def test_proven_losses_come_first_in_the_verdict() -> None:
    lost, unclear = Gain(-16.4, -31.0, -4.7), Gain(1.0, -4.0, 6.0)
    gains = {"dense": {"trust": unclear, "mmlu": lost, "ood": Gain(-20.0, -30.0, -10.0)}}
    text = certificate.verdict(gains)
    assert text.startswith(
        "worse than dense: ood -20.0 (-30.0 to -10.0), mmlu -16.4 (-31.0 to -4.7); "
    )
    assert "trust +1.0 (-4.0 to +6.0): no evidence of a gain over dense" in text


def test_a_loss_is_never_summed_up_as_no_evidence() -> None:
    text = certificate.verdict({"dense": {"trust": Gain(-16.4, -30.0, -2.7)}})
    assert text == "worse than dense: trust -16.4 (-30.0 to -2.7)"


def test_three_sentences(result) -> None:
    about_dense, *sentences = result.answer.sentences
    assert about_dense.startswith("The dense model itself shows no skill in")  # answers at random
    assert len(sentences) == 3
    smallest = result.answer.picks[AS_GOOD]
    assert sentences[0].startswith(smallest.name)
    assert "held-out samples" in sentences[0]
    assert "best single variant" in sentences[1]
    assert "against the dense model" in sentences[2] or "than the dense model" in sentences[2]


def test_losses_of_the_front_are_counted(result) -> None:
    dense, better = result.compared[0], Gain(0.0, -1.0, 1.0)
    over = dict.fromkeys(("trust", "mmlu"), better)
    first, *others = [
        replace(row, gains={"dense": over, "best_single": over}) for row in result.front
    ]
    lost = over | {"mmlu": Gain(-16.4, -31.0, -4.7)}
    front = [replace(first, gains={"dense": lost, "best_single": over}), *others]
    text = answers.answer(front, [dense, result.compared[1]], 305).sentences[-1]
    gb = f"{first.search['memory_gb']:.3f}"
    assert text == (
        f"Proven losses against the dense model: mmlu (1 of {len(front)}, all up to {gb} GB)."
    )


def test_a_dense_model_without_skill_is_said_first(result) -> None:
    dense = replace(result.compared[0], unskilled=("mmlu", "fairness", "fairness/plain"))
    first = answers.answer(result.front, [dense, *result.compared[1:]], 305).sentences[0]
    assert first == "The dense model itself shows no skill in mmlu, fairness."


def test_nothing_is_as_good_as_dense(result) -> None:
    same, lost = Gain(0.0, -1.0, 1.0), Gain(-9.0, -12.0, -6.0)
    over = {"dense": {"trust": lost}, "best_single": {"trust": same}}
    worse = [replace(row, gains=over, picks=()) for row in result.front]
    first = answers.answer(worse, result.compared, 305).sentences[1]
    assert first == "Every choice is proven worse than the dense model on some score."
    unclear = [*worse[:-1], replace(worse[-1], gains=over | {"dense": {"trust": same}})]
    first = answers.answer(unclear, result.compared, 305).sentences[1]
    assert first == "No choice shows on the search half that it is as good as the dense model."


@pytest.mark.parametrize("width", [60, 80, 118])
def test_tables_fit_and_show_whole_names(result, width: int) -> None:
    screen = Console(file=io.StringIO(), width=width)
    terminal.show_rows(screen, "front", result.front, 0.2, result.compared)
    shown = screen.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    for row in result.front:
        assert row.name in " ".join(shown.split())
        assert f"{row.search['trust']:.1f}" in shown
    assert ("refused" in shown) == (width > 80)
    assert "<- " in shown
