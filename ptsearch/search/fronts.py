"""What each kind of study reports on."""

from collections.abc import Callable
from dataclasses import dataclass, field

from ptsearch.evaluation.table import Table
from ptsearch.search import exact_front, limits, next_build, paper, trials
from ptsearch.search import study as studies
from ptsearch.search.exact_front import ExactFront
from ptsearch.search.study import CompletedTrial, Members, study_config
from ptsearch.search.trials import Search
from ptsearch.shared import stage


@dataclass(frozen=True)
class Front:
    """What a study reports on."""

    exact: ExactFront | None  # None = not all ensembles were looked for
    chosen: list[CompletedTrial]
    remarks: list[str] = field(default_factory=list)
    all_data: bool = False  # scores on all samples too, as the paper reports


def _pareto(run: Search) -> Front:
    """The front of all ensembles of what is built, after the sampler's trials."""
    table, search = run.table, study_config(run.table.config)
    if search.max_builds:
        next_build.build_some(table, search.max_builds)
    trials.search(run)
    with stage(table.report, "scoring every ensemble"):
        exact = exact_front.complete(run)
    left_out = table.left_out()  # here, if not in another process
    chosen = [each for each in studies.front(run.study) if left_out.keys().isdisjoint(each.members)]
    if not chosen and exact.everything is not None:
        limits.within_limits(table, run.scorer)  # reports how to relax them
    return Front(exact, chosen)


def _within_limits(run: Search) -> Front:
    """The most trusted ensemble within the limits."""
    answer = limits.within_limits(run.table, run.scorer)
    assert answer.pick is not None
    return Front(None, [trials.named(run, answer.pick)], [limits.verdict(answer)])


def _given(ensembles: Callable[[Table], list[Members]]) -> "Find":
    """Reports on ensembles that are not searched for: the paper's experiments."""

    def find(run: Search) -> Front:
        given = [CompletedTrial(*each, "") for each in enumerate(ensembles(run.table))]
        return Front(None, given, all_data=True)

    return find


Find = Callable[[Search], Front]
FRONTS: dict[str, Find] = {
    "pareto": _pareto,
    "slo": _within_limits,
    "benchmark": _given(paper.singles),
    "paper": _given(paper.ensembles),
}
