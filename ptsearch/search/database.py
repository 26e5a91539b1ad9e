"""Databases that several processes share: made whole, and locks that die with their holder.

SQLite's locks are files beside it, for the processes of one machine; PostgreSQL's are advisory
locks of a session, which its server frees when the process or its machine is lost.
"""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import urllib3
from filelock import FileLock, Timeout
from optuna.exceptions import OptunaError
from sqlalchemy import create_engine, func, make_url, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from ptsearch import store

KEEPALIVE = {"idle": 30, "interval": 10, "count": 3}  # a lost machine is noticed in a minute
TIMEOUT = 10  # seconds to reach a server
ALONE = "alone"


@dataclass(frozen=True)
class Locks:
    """Of the processes that work on one study."""

    take: Callable[[str, bool], bool]  # name, whether to wait for it -> whether it is ours
    free: Callable[[str], object]
    process: str = ""  # this one, which holds the lock of that name as long as it lives

    @contextmanager
    def alone(self) -> Iterator[None]:
        """One process at a time."""
        self.take(ALONE, True)
        try:
            yield
        finally:
            self.free(ALONE)

    def is_dead(self, process: str) -> bool:
        """Whether another process has ended; asked only while alone."""
        if process == self.process or not self.take(process, False):
            return False
        self.free(process)
        return True


UNSHARED = Locks(lambda *_: True, lambda _: None)  # of a study that is kept nowhere


@contextmanager
def shared(url: str, study: str) -> Iterator[Locks]:
    """The locks of a study; this process counts as alive until the end."""
    with legible(url), _locks(url, study) as locks:
        process = secrets.token_hex(8)
        locks.take(process, True)
        try:
            yield Locks(locks.take, locks.free, process)
        finally:
            locks.free(process)


def reach(url: str) -> None:
    """Before much is done. ValueError, ImportError: there is no server at `url`, or it refuses."""
    if is_server(url):  # MLflow itself would ask again for minutes
        try:
            urllib3.request("HEAD", url, retries=False, timeout=TIMEOUT)
        except urllib3.exceptions.HTTPError as error:
            raise unusable(f"MLflow at {shown(url)}", error) from error
    elif _backend(url) == "postgresql":
        with legible(url), _advisory_locks(url, ""):
            pass


def is_server(url: str) -> bool:
    return url.startswith(("http://", "https://"))


@contextmanager
def opening(url: str, create: Callable[[str], object]) -> Iterator[None]:
    """While a database is opened that may be new, by one process at a time. SQLite's is made by
    `create` beside its place and linked to it, so that it is there whole or not at all.

    ValueError: it cannot be used, such as one that was half made. ImportError: no driver.
    """
    lockable = _backend(url) in {"sqlite", "postgresql"}
    locks = _locks(url, "") if lockable else nullcontext(UNSHARED)
    with legible(url), locks as held, held.alone():
        if _backend(url) == "sqlite":
            _make(_path(url), create)
        yield


def replace_artifacts(url: str, old: str, new: str) -> None:
    """MLflow keeps absolute URIs of artifacts; those of a folder that was moved or copied from
    `old` to `new` (both end with a study's name), and of all studies beside it, are corrected.
    """
    parents = {"old": old[: old.rfind("/") + 1], "new": new[: new.rfind("/") + 1]}
    with create_engine(url, poolclass=NullPool).begin() as session:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            change = f"UPDATE {table} SET {column} = replace({column}, :old, :new)"
            session.execute(text(change), parents)


@contextmanager
def legible(url: str) -> Iterator[None]:
    """Errors of a database in two lines, without its password."""
    try:
        yield
    except (SQLAlchemyError, OptunaError) as error:
        cure = "; if it was left half made, move it away" if _backend(url) == "sqlite" else ""
        raise unusable(f"the database {shown(url)}", error.__cause__ or error, cure) from error
    except ImportError as error:
        if _backend(url) != "postgresql":
            raise
        raise ImportError(f"{error}\nPostgreSQL needs pip install 'ptsearch[postgres]'") from error


def unusable(what: str, error: BaseException, cure: str = "") -> ValueError:
    return ValueError(f"{what} cannot be used{cure}\n({(str(error).splitlines() or [''])[0]})")


def shown(url: str) -> str:
    """Without its password."""
    return make_url(url).render_as_string()


def _backend(url: str) -> str:
    return url.partition(":")[0].partition("+")[0]


def _path(url: str) -> Path:
    return Path(str(make_url(url).database))


def _make(path: Path, create: Callable[[str], object]) -> None:
    if path.exists():
        return
    part = store.part_of(path)
    try:
        create(f"sqlite:///{part}")
        for rest in ("-wal", "-shm"):  # of a lost database: SQLite would read them into this one
            path.with_name(path.name + rest).unlink(missing_ok=True)
        try:
            os.link(part, path)
        except FileExistsError:  # made by a process that knows no locks
            pass
        except OSError:  # no hard links here
            part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _locks(url: str, study: str) -> AbstractContextManager[Locks]:
    if _backend(url) == "sqlite":
        return nullcontext(_file_locks(_path(url), study))
    if _backend(url) == "postgresql":
        return _advisory_locks(url, study)
    raise ValueError(f"studies are kept in SQLite or PostgreSQL, not in {_backend(url)}")


def _file_locks(database: Path, study: str) -> Locks:
    held: dict[str, FileLock] = {}
    database.parent.mkdir(parents=True, exist_ok=True)

    def take(name: str, wait: bool) -> bool:
        digest = hashlib.sha256(f"{study}/{name}".encode()).hexdigest()[:16]
        lock = FileLock(database.with_name(f".{database.name}-{digest}.lock"))
        try:
            lock.acquire(blocking=wait)
        except Timeout:
            return False
        held[name] = lock
        return True

    def free(name: str) -> None:
        lock = held.pop(name)
        if name != ALONE:  # nobody waits for the others
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()

    return Locks(take, free)


@contextmanager
def _advisory_locks(url: str, study: str) -> Iterator[Locks]:
    engine = create_engine(
        url, poolclass=NullPool, isolation_level="AUTOCOMMIT",
        connect_args={"connect_timeout": TIMEOUT},
    )  # fmt: skip
    with engine.connect() as session:
        for name, value in KEEPALIVE.items():
            session.execute(text(f"set tcp_keepalives_{name} = {value}"))

        def call(function: str, name: str) -> bool:
            key = func.hashtextextended(f"ptsearch/{study}/{name}", 0)
            return session.scalar(select(getattr(func, function)(key))) is not False

        yield Locks(
            lambda name, wait: call("pg_advisory_lock" if wait else "pg_try_advisory_lock", name),
            lambda name: call("pg_advisory_unlock", name),
        )
