"""Before a server accepts requests, the votes logged at export must be reproduced."""

import asyncio
import logging
from collections.abc import Sequence

from ptsearch.deploy import query
from ptsearch.deploy.folder import Exported, LoggedVote, read_verify
from ptsearch.serve.replies import AWAY, Ask, count

AT_ONCE = 16  # queries under way
SHOWN = 5  # changes that the error lists

log = logging.getLogger(__name__)


async def check(folder: Exported, ask: Ask, calibrated: bool, max_changed: int) -> None:
    """Ask every logged query again. ValueError: more than `max_changed` votes changed.

    `calibrated`: the members can subtract a calibration; if not, queries that need one are skipped.
    """
    logged = read_verify(folder)
    asked = [row for row in logged if calibrated or not row.query.offsets]
    if len(asked) < len(logged):
        log.info("%d logged votes need log-probabilities: not replayed", len(logged) - len(asked))
    if not asked:
        log.warning("no votes were logged at export: whether they are reproduced cannot be checked")
        return
    limit = asyncio.Semaphore(AT_ONCE)
    replayed = await asyncio.gather(
        *(_change(ask, row, list(folder.members), limit) for row in asked)
    )
    changes = [change for change in replayed if change]
    log.info("%d of %d logged votes were reproduced", len(asked) - len(changes), len(asked))
    for change in changes:
        log.warning("a logged vote has changed: %s", change)
    if len(changes) > max_changed:
        raise ValueError(
            f"{len(changes)} of {len(asked)} logged votes have changed "
            f"(serve.max_changed={max_changed}): {'; '.join(changes[:SHOWN])}"
        )


async def _change(
    ask: Ask, row: LoggedVote, members: Sequence[str], limit: asyncio.Semaphore
) -> str:
    """How the vote has changed; "" = it has not."""
    async with limit:
        replies = await ask(row.query)
    away = [m for m, reply in zip(members, replies, strict=True) if reply.outcome in AWAY]
    if away:
        return f"{row.sample}: no reply of {', '.join(away)}"
    vote = query.name(row.query, count(replies, row.query).code)
    if vote == row.vote:
        return ""
    given = [query.name(row.query, reply.code) for reply in replies]
    by = [m for m, answer in zip(members, given, strict=True) if answer != row.members[m]]
    return f"{row.sample} was {row.vote!r}, is {vote!r} (by {', '.join(by)})"
