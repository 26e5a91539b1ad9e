"""A PostgreSQL server of the tests' own, on a free port in a temporary folder."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from glob import glob
from pathlib import Path

import pytest

PASSWORD = "correct-horse"


def program(name: str) -> str:
    """Of PostgreSQL's server programs; Debian keeps them out of PATH."""
    places = [shutil.which(name), *sorted(glob(f"/usr/lib/postgresql/*/bin/{name}"))]
    for place in places:
        if place:
            return place
    pytest.skip(f"PostgreSQL's {name} is not installed")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server() -> Iterator[str]:
    """Its URL, to which `/studies` or `/runs` is added, two new databases."""
    psycopg = pytest.importorskip("psycopg", reason="psycopg is not installed")
    as_root = os.geteuid() == 0
    try:
        user = pwd.getpwnam("postgres") if as_root else pwd.getpwuid(os.geteuid())
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    with tempfile.TemporaryDirectory() as place:
        folder, port = Path(place), free_port()
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if as_root:
            for path in (folder, secret):
                os.chown(path, user.pw_uid, user.pw_gid)
        run = partial(
            subprocess.run, check=True, cwd=folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, user=user.pw_uid if as_root else None,
        )  # fmt: skip
        data = folder / "data"
        run([program("initdb"), "--no-sync", "-U", "tester", "-A", "scram-sha-256",
             f"--pwfile={secret}", "-D", data])  # fmt: skip
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories="
        options += " -c fsync=off"
        control = [program("pg_ctl"), "-D", data, "-w", "-l", folder / "log"]
        run([*control, "-o", options, "start"])
        try:
            url = f"postgresql://tester:{PASSWORD}@127.0.0.1:{port}"
            with psycopg.connect(f"{url}/postgres", autocommit=True) as connection:
                for name in ("studies", "runs"):
                    connection.execute(f"create database {name}")
            yield url
        finally:
            run([*control, "-m", "immediate", "stop"])
