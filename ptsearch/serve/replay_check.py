"""Served equals searched: the votes logged at export must come out again before going live."""

import asyncio
import logging
from collections.abc import Sequence

from ptsearch.deploy import query
from ptsearch.deploy.folder import Exported, Logged, read_verify
from ptsearch.serve.replies import AWAY, Ask, count

AT_ONCE = 16  # queries under way
SHOWN = 5  # differences that the error names

log = logging.getLogger(__name__)


async def check(folder: Exported, ask: Ask, calibrated: bool, differ: int) -> None:
    """Ask every logged query again. ValueError: more than `differ` votes came out otherwise.

    `calibrated`: whether the members can subtract a calibration; if not, such queries are left out.
    """
    logged = read_verify(folder)
    asked = [row for row in logged if calibrated or not row.query.offsets]
    if len(asked) < len(logged):
        log.info("%d logged votes need log-probabilities: not replayed", len(logged) - len(asked))
    if not asked:
        log.warning("no vote was logged at export: nothing says that this serves as searched")
        return
    limit = asyncio.Semaphore(AT_ONCE)
    replayed = await asyncio.gather(
        *(_differs(ask, row, list(folder.members), limit) for row in asked)
    )
    differences = [said for said in replayed if said]
    log.info("%d of %d logged votes came out again", len(asked) - len(differences), len(asked))
    for said in differences:
        log.warning("a logged vote comes out otherwise: %s", said)
    if len(differences) > differ:
        raise ValueError(
            f"{len(differences)} of {len(asked)} logged votes come out otherwise "
            f"(serve.differ={differ}): {'; '.join(differences[:SHOWN])}"
        )


async def _differs(ask: Ask, row: Logged, members: Sequence[str], limit: asyncio.Semaphore) -> str:
    """What is other than it was; "" = nothing."""
    async with limit:
        replies = await ask(row.query)
    away = [m for m, reply in zip(members, replies, strict=True) if reply.outcome in AWAY]
    if away:
        return f"{row.sample}: no reply of {', '.join(away)}"
    vote = query.name(row.query, count(replies, 0).code)
    if vote == row.vote:
        return ""
    given = [query.name(row.query, reply.code) for reply in replies]
    by = [m for m, answer in zip(members, given, strict=True) if answer != row.members[m]]
    return f"{row.sample} was {row.vote!r}, is {vote!r} (by {', '.join(by)})"
