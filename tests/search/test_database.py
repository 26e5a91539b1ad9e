"""A database appears whole or not at all; a lock ends with its holder."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from ptsearch.report import tracking
from ptsearch.search.database import opening, shared


def tables(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [row[0] for row in connection.execute("select name from sqlite_master")]


def visible(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.suffix != ".lock"]


def make(*names: str) -> Callable[[str], None]:
    def create(url: str) -> None:
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            for name in names:
                connection.execute(f"create table {name} (a int)")

    return create


def test_a_database_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"

    def fail(part: str) -> None:
        make("one")(part)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), opening(url, fail):
        pass
    assert visible(tmp_path) == []
    with opening(url, make("one", "two")):
        assert tables(tmp_path / "study.db") == ["one", "two"]
    with opening(url, make("three")):  # it is there
        assert tables(tmp_path / "study.db") == ["one", "two"]
    assert visible(tmp_path) == ["study.db"]


def test_what_another_program_makes_meanwhile_is_kept(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"

    def late(part: str) -> None:
        make("mine")(part)
        make("theirs")(url)

    with opening(url, late):
        assert tables(tmp_path / "study.db") == ["theirs"]


@pytest.mark.parametrize("content", [b"no database at all" * 100, None])
def test_a_database_that_cannot_be_used_is_named_with_the_cure(
    content: bytes | None, tmp_path: Path
) -> None:
    path = tmp_path / "mlflow.db"
    if content:
        path.write_bytes(content)
    else:  # as a kill in the middle of MLflow's migrations leaves it
        make("secrets", "experiments")(f"sqlite:///{path}")
    with pytest.raises(ValueError, match=r"mlflow\.db cannot be used; if .* half made, move"):
        tracking.open_run(f"sqlite:///{path}", tmp_path, "study", None)


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    with shared(url, "a") as one:
        with shared(url, "a") as other, one.alone():
            assert not one.is_dead(other.process)
            assert not one.is_dead(one.process)
            assert not other.take("alone", False)
            with shared(url, "b") as elsewhere:
                assert elsewhere.take("alone", False)
        assert one.is_dead(other.process)
        assert one.is_dead("was never there")
    assert len(list(tmp_path.iterdir())) == 2  # the locks of the studies themselves
