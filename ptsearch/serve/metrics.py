"""What /metrics shows (Prometheus), and whether the members disagree more than they should."""

import logging
from collections import deque
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from ptsearch.serve.replies import Reply, VoteResult

WINDOW = 1000  # votes over which the disagreement is taken
LEAST = 50  # votes before it can raise the alarm
SETTLED = 0.9  # of the alarm's level, below which a new alarm is worth a new warning
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)

log = logging.getLogger(__name__)


class Meter:
    """Counters of one server."""

    def __init__(self, members: Sequence[str], alarm: float) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)  # resident memory, processor time, open files
        self.members, self.alarm = members, alarm
        self.warned = False
        self.recent: deque[bool] = deque(maxlen=WINDOW)
        self.requests = Counter(
            "ptsearch_requests", "Requests by status", ["status"], registry=registry
        )
        self.replies = Counter(
            "ptsearch_replies", "Members' replies", ["member", "outcome"], registry=registry
        )
        self.waiting = Gauge(
            "ptsearch_requests_in_progress", "Requests under way", registry=registry
        )
        self.seconds = Histogram(
            "ptsearch_request_seconds", "From request to vote", buckets=BUCKETS, registry=registry
        )
        self.own = Histogram(
            "ptsearch_own_seconds", "The same, less the slowest member's time",
            buckets=BUCKETS, registry=registry,
        )  # fmt: skip
        self.degraded = Counter(
            "ptsearch_degraded_votes", "Votes without some member", registry=registry
        )
        self.disagreement = Gauge(
            "ptsearch_disagreement", f"Share of the last {WINDOW} votes with different answers",
            registry=registry,
        )  # fmt: skip
        self.alarmed = Gauge(
            "ptsearch_disagreement_alarm", f"1 while it is over {alarm}", registry=registry
        )

    def vote(self, replies: Sequence[Reply], vote: VoteResult, seconds: float) -> None:
        """Count a vote that took `seconds`."""
        for member, reply in zip(self.members, replies, strict=True):
            self.replies.labels(member, reply.outcome).inc()
        self.degraded.inc(vote.away > 0)
        self.seconds.observe(seconds)
        self.own.observe(max(0.0, seconds - max(reply.ms for reply in replies) / 1000))
        self.recent.append(not vote.agreed)
        self._watch()

    def _watch(self) -> None:
        """Raise or end the alarm."""
        share = sum(self.recent) / len(self.recent)
        self.disagreement.set(share)
        over = len(self.recent) >= LEAST and share > self.alarm
        if over and not self.warned:
            log.warning("members disagree in %.1f %% of the last votes", 100 * share)
        self.warned = over or (self.warned and share > SETTLED * self.alarm)
        self.alarmed.set(over)
