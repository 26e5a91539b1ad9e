"""OpenAI-compatible endpoints in front of an exported ensemble.

In: chat and completion requests with labels. Out: the vote, with each member's answer.
`local.py` runs all members in this process, `gateway.py` asks engines over HTTP, without torch.
Open `app.py` first.
"""

import asyncio
import importlib
import logging
import socket
import sys
from collections.abc import Callable

import uvicorn

from ptsearch.config import Config, EngineConfig, ServeConfig
from ptsearch.deploy.folder import open_folder
from ptsearch.serve import app, replay_check
from ptsearch.serve.connection import limited, warn_seldom
from ptsearch.serve.metrics import Meter
from ptsearch.shared import secret

log = logging.getLogger(__name__)

Live = Callable[[str, uvicorn.Server], None]


def run(config: Config) -> None:
    """Serve until a signal ends it. ValueError: the folder, an engine or a vote is not right."""
    assert config.serve is not None
    asyncio.run(serve(config.serve, config.engine, _say_live))


async def serve(settings: ServeConfig, engine: EngineConfig, live: Live) -> None:
    """Open the members, replay, then answer; `live` is told the URL and the server."""
    if not settings.dir:
        raise ValueError("serve.dir is missing: give serve.dir=DIR, an exported ensemble")
    log.info("comparing the files of %s with their checksums", settings.dir)
    folder = open_folder(settings.dir)
    labels = list(folder.members)
    if settings.quorum > len(labels):
        raise ValueError(f"serve.quorum={settings.quorum}: there are {len(labels)} members")
    key = secret("serve.api_key_env", settings.api_key_env)
    # The port is taken before the models are loaded, and listened to only when all is well.
    with _bound(settings.host, settings.port) as bound:
        members = importlib.import_module(f"ptsearch.serve.{settings.mode}").members
        async with members(folder, settings, engine) as opened:
            log.info("asking what the study asked: its votes must be reproduced")
            calibrated = settings.mode == "local"
            await replay_check.check(folder, opened.ask, calibrated, settings.max_changed)
            service = app.Service(
                settings.name or folder.folder.name,
                labels,
                opened,
                settings,
                key,
                Meter(labels, settings.alarm_disagreement),
                folder.description.vote,
            )
            connection = limited(settings.max_concurrent)
            server = uvicorn.Server(
                uvicorn.Config(
                    app.build(service),
                    http=connection,
                    backlog=connection.most,  # as many are accepted before any is looked at
                    log_config=None,
                    log_level="error",  # not a line for each request that is no HTTP
                    access_log=False,  # paths and addresses of every request
                    lifespan="off",
                    ws="none",
                    timeout_graceful_shutdown=int(settings.timeout) + 1,
                )
            )
            host, port = bound.getsockname()[:2]
            warn_seldom(asyncio.get_running_loop())
            bound.listen()
            live(f"http://{host}:{port}/v1", server)
            await server.serve([bound])


def _bound(host: str, port: int) -> socket.socket:
    """Said to be TCP: else asyncio leaves Nagle's algorithm on, and each response waits 40 ms for
    the client to acknowledge its headers.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ValueError(
            f"serve.host={host} serve.port={port} cannot be used: {error.strerror}"
        ) from None
    return bound


def _say_live(url: str, server: uvicorn.Server) -> None:
    sys.stdout.write(f"serving at {url}\n")
    sys.stdout.flush()
