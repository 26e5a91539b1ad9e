"""Databases and servers that cannot be reached: two lines that say what is wrong, no password."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from postgres import PASSWORD, free_port, server

from ptsearch import jobs
from ptsearch.config import Config
from ptsearch.report import tracking
from ptsearch.search import study as studies
from ptsearch.search.database import reach, shared
from ptsearch.shared import database_url


def search(url: str) -> None:
    with shared(url, "study"):
        pass


def export(url: str) -> None:
    studies.load_study("study", url)


def log(url: str) -> None:
    with tracking.legible(url):
        tracking.open_run(url, Path(), "study", None)


USES = [reach, search, export, log]


def refused(use: Callable[[str], None], url: str, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        use(database_url("optuna_db", url))
    said = str(caught.value)
    assert PASSWORD not in said
    assert len(said.splitlines()) == 2
    return said


@pytest.mark.parametrize("use", USES)
def test_no_server_there(use: Callable[[str], None]) -> None:
    pytest.importorskip("psycopg")
    url = f"postgresql://tester:{PASSWORD}@127.0.0.1:{free_port()}/studies"
    said = refused(use, url)
    assert "the database postgresql+psycopg://tester:***@127.0.0.1" in said
    assert "refused" in said


@pytest.mark.parametrize("use", USES)
def test_no_driver(use: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "psycopg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "psycopg", None)
    said = refused(use, f"postgres://tester:{PASSWORD}@127.0.0.1/studies", ImportError)
    assert "pip install 'ptsearch[postgres]'" in said


def test_another_kind_of_database() -> None:
    with pytest.raises(ValueError, match="kept in SQLite or PostgreSQL, not in mysql"):
        search("mysql://tester@127.0.0.1/studies")


def test_no_mlflow_server() -> None:
    url = f"http://tester:{PASSWORD}@127.0.0.1:{free_port()}"
    assert "MLflow at http://tester:***@127.0.0.1" in refused(reach, url)


def test_one_database_for_both() -> None:
    with pytest.raises(ValueError, match="must be two databases"):
        jobs.mlflow_url(Config(optuna_db="sqlite:////tmp/a.db", mlflow_db="sqlite:////tmp/a.db"))


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.mark.faults
@pytest.mark.parametrize("use", USES)
def test_a_wrong_password(use: Callable[[str], None], postgres: str) -> None:
    url = postgres.replace(PASSWORD, f"{PASSWORD}-not")
    assert "password authentication failed" in refused(use, f"{url}/studies")


@pytest.mark.faults
@pytest.mark.parametrize("use", USES)
def test_a_database_that_is_not_there(use: Callable[[str], None], postgres: str) -> None:
    assert 'database "none" does not exist' in refused(use, f"{postgres}/none")
