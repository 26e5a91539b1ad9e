"""A build and an evaluation that are killed; the same again gives the same, and leaves nothing."""

from pathlib import Path

import killed
import pytest

MOMENTS = (0.1, 0.3, 0.5, 0.7, 0.9)  # of the time that it takes undisturbed


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, tmp_path_factory) -> tuple[float, dict[str, object]]:
    cache = tmp_path_factory.mktemp("undisturbed")
    seconds = killed.undisturbed(tiny_model, cache)
    return seconds, killed.contents(cache)


def test_the_same_after_kills(undisturbed, tiny_model: Path, tmp_path: Path) -> None:
    seconds, expected = undisturbed
    for moment in MOMENTS:
        killed.kill_at(moment * seconds, lambda: killed.start(tiny_model, tmp_path))
    killed.undisturbed(tiny_model, tmp_path)
    assert killed.contents(tmp_path) == expected


@pytest.mark.faults
def test_two_processes_evaluate_each_variant_once(
    undisturbed, tiny_model: Path, tmp_path: Path
) -> None:
    told, cache = tmp_path / "told", tmp_path / "cache"
    processes = [killed.start(tiny_model, cache, told) for _ in range(2)]
    for process in processes:
        process.join()
        assert process.exitcode == 0
    by_whom = [line.split(", ") for line in set(told.read_text(encoding="utf-8").splitlines())]
    assert len({what for what, _ in by_whom}) == len(by_whom) == 4
    assert killed.contents(cache) == undisturbed[1]
