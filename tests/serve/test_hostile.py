"""Hostile requests of every kind: none gets a 500 or ends the server, and nobody waits for it."""

import time
from collections.abc import Iterator

import hostile
import httpx
import pytest
from hostile import CLOSED, KINDS
from members import folder  # noqa: F401 - a fixture: three members of one tiny model
from serving import NAMES, engines, live, running, write_folder

from ptsearch.config import ServeConfig

WELL = {"prompt": "Is it?", "guided_choice": ["a", "b"]}


@pytest.fixture(scope="module", params=["local", "gateway"])
def url(request, folder, tmp_path_factory) -> Iterator[str]:
    if request.param == "local":
        with live(ServeConfig(dir=str(folder), port=0, deadline=4)) as url:
            yield url
        return
    out = write_folder(tmp_path_factory.mktemp("served") / "out", dict.fromkeys(NAMES))
    with running(*engines("a", "b", "a")) as urls:
        settings = ServeConfig("gateway", str(out), port=0, engines=urls, deadline=4)
        with live(settings) as url:
            yield url


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_request_is_answered_as_such_and_hurts_nobody(kind, url, caplog) -> None:
    attack = KINDS[kind]
    place = httpx.URL(url).host, httpx.URL(url).port
    status = hostile.run(place, attack)
    started = time.monotonic()
    assert httpx.post(f"{url}/completions", json=WELL, timeout=20).status_code == 200
    assert time.monotonic() - started < 5
    assert status in (*attack.statuses, *([CLOSED] if 413 in attack.statuses else []))
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
