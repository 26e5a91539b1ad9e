"""How much of the true front each sampler finds, by trials and by seconds, on an evaluated pool.

    python experiments/compare_samplers.py TRIALS SEEDS pool=wide [OVERRIDES]
        [--samplers sets,tpe] [--half holdout]

First with all variants evaluated: the share of the true front's hypervolume after so many trials,
as a study runs them (single variants first). Then by seconds, without that queue: a trial pays for
its sampler's own time and for the members that it names first (their own part of the build and
their answers, the median of all: all run the same products). Then in order of building, where
whatever was paid for is enumerated; beside it the variants in the pool's order, in random ones and
in that of `study.max_builds`, and the best half of the seconds that hindsight could choose.
Prints JSON lines.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import optuna
from real_table import real_table

from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring.scores import Scores
from ptsearch.search import exact_front, next_build
from ptsearch.search import study as studies
from ptsearch.search.scorer import scorers
from ptsearch.search.study import Members
from ptsearch.search.trials import Search
from ptsearch.search.trials import search as search_trials

SECONDS = (0.5, 0.75, 1.0, 1.1, 1.5, 2.0, 3.0)  # times what all variants take


def seconds_of(table: Table, label: str) -> float:
    """What an evaluated variant cost: its own part of the build, and its answers."""
    asked = [predictions.read(path)["seconds"] for path in table.outputs(label).values()]
    return float(table.meta(label).cpu_seconds + sum(sum(s.to_pylist()) for s in asked))


class Landscape:
    """Every ensemble of a table with its scores: replays look them up."""

    def __init__(self, table: Table, half: str = "search") -> None:
        self.table, self.scorer = table, scorers(table)[half]
        self.labels = table.voters()
        self.exact = exact_front.find_exact_front(table, self.scorer)
        assert self.exact.everything, "limits and other votes are not replayed"
        _, self.masks, self.scores = self.exact.everything
        self.place = {int(mask): i for i, mask in enumerate(self.masks)}
        own = {label: float(table.meta(label).cpu_seconds) for label in self.labels}
        answers = float(np.median([seconds_of(table, label) - own[label] for label in self.labels]))
        self.cost = {label: seconds + answers for label, seconds in own.items()}

    def __call__(self, table: Table, members: Sequence[str]) -> Scores:
        place = self.place.get(self.mask(members))
        if place is None:  # more members than are enumerated
            return self.scorer(table, members)
        return {name: float(values[place]) for name, values in self.scores.items()}

    def mask(self, members: Iterable[str]) -> int:
        return sum(1 << self.labels.index(label) for label in members)

    @functools.cache  # noqa: B019  (one landscape a process)
    def share(self, built: frozenset[str]) -> float:
        """Percent of the whole hypervolume that the ensembles of the built variants have."""
        inside = self.masks & np.uint32(self.mask(built)) == self.masks
        values = [self.scores[name][inside] for name in self.exact.names]
        points = exact_front.scaled(self.exact, np.stack(values, axis=1))
        whole = exact_front.volume(exact_front.scaled(self.exact, self.exact.values))
        return 100 * exact_front.volume(points) / whole


class Replay(NamedTuple):
    study: optuna.Study
    tried: list[Members]
    scores: list[Scores | None]  # of each, None where the limits do not allow it
    own: list[float]  # seconds of processor time that the sampler took for each


def run(land: Landscape, sampler: str, seed: int, trials: int, queue: bool) -> Replay:
    """One replay; without `queue` it begins with a random ensemble instead of the singles."""
    search = replace(studies.study_config(land.table.config), trials=trials, sampler=sampler)
    land.table.config.study = search
    study = studies.unsaved(replace(search, seed=seed))
    chosen = sorted(np.random.default_rng(seed).choice(len(land.labels), 3, replace=False))
    scorer: Any = land
    replay, before = Replay(study, [], [], []), [time.process_time()]

    def seen(found: studies.CompletedTrial, scores: Scores, feasible: bool) -> str:
        replay.tried.append(found.members)
        replay.scores.append(scores if feasible else None)
        replay.own.append(time.process_time() - before[0])
        before[0] = time.process_time()
        return ""

    first = None if queue else [tuple(land.labels[i] for i in chosen)]
    search_trials(Search(study, land.table, scorer, seen), first)
    return replay


def by_trials(land: Landscape, sampler: str, seeds: int, trials: int) -> dict[str, Any]:
    """Shares of the hypervolume after 50, 100, ... trials: median and worst over seeds."""
    curves, own = [], []
    for seed in range(seeds):
        replay = run(land, sampler, seed, trials, queue=True)
        curves.append(exact_front.shares(land.exact, replay.scores)[:trials])
        own += replay.own
    found = np.array(curves)
    points = [p for p in (25, 50, 100, 150, 200, 400, 1000, 2000) if p <= trials]
    return {
        "sampler": sampler, "seeds": seeds, "ms_per_trial": round(1000 * float(np.mean(own)), 1),
        "median": {p: round(float(np.median(found[:, p - 1])), 2) for p in points},
        "worst": {p: round(float(found[:, p - 1].min()), 2) for p in points},
    }  # fmt: skip


def by_seconds(land: Landscape, name: str, replays: Sequence[Replay]) -> dict[str, Any]:
    """Share that the trials themselves dominate once so many times the seconds of building and
    evaluating all variants are spent: median and worst. What has ended by then keeps its share.
    """
    whole, found = sum(land.cost.values()), []
    for replay in replays:
        paid, spent = set[str](), []
        for members, own in zip(replay.tried, replay.own, strict=True):
            spent.append(own + sum(land.cost[label] for label in members if label not in paid))
            paid |= set(members)
        shares, ends = exact_front.shares(land.exact, replay.scores), np.cumsum(spent)
        done = [int((ends <= point * whole).sum()) for point in SECONDS]
        found.append([shares[n - 1] if n else 0.0 for n in done])
    middle, worst = np.median(found, axis=0), np.min(found, axis=0)
    return {
        "by_seconds": name, "replays": len(replays), "trials": len(replays[0].tried),
        "own_seconds": round(float(np.mean([sum(r.own) for r in replays])), 1),
        "median": dict(zip(SECONDS, middle.round(2).tolist(), strict=True)),
        "worst": dict(zip(SECONDS, worst.round(2).tolist(), strict=True)),
    }  # fmt: skip


def approximation(land: Landscape) -> dict[str, Any]:
    """What stands in for the true front where not all ensembles can be scored."""
    scorer: Any = land
    started = time.process_time()
    found = exact_front.approximate_front(land.table, scorer, "replay")
    spent = time.process_time() - started
    losses, whole = (exact_front.scaled(land.exact, each.values) for each in (found, land.exact))
    return {
        "approximation": "greedy and NSGA-II", "ensembles": found.ensembles,
        "share": round(100 * exact_front.volume(losses) / exact_front.volume(whole), 2),
        "seconds": round(spent, 1),
    }  # fmt: skip


def order_of(land: Landscape, study: optuna.Study) -> list[str]:
    """Variants in the order in which trials, pruned ones too, first named them; then the rest."""
    named = [label for t in study.trials for label in land.labels if t.params.get(label)]
    return list(dict.fromkeys([*named, *land.labels]))


def by_builds(land: Landscape, name: str, orders: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Share at half of the seconds, and builds and seconds to 95 % of the final hypervolume."""
    half, builds, seconds = [], [], []
    whole = sum(land.cost.values())
    for order in orders:
        spent = np.cumsum([land.cost[label] for label in order])
        shares = [land.share(frozenset(order[: n + 1])) for n in range(len(order))]
        paid = np.flatnonzero(spent <= whole / 2)
        half.append(shares[paid[-1]] if paid.size else 0.0)
        reached = int(np.argmax(np.array(shares) >= 95)) if max(shares) >= 95 else len(order) - 1
        builds.append(reached + 1)
        seconds.append(spent[reached] / whole)
    return {
        "order": name, "replays": len(orders),
        "share_at_half_the_seconds": {
            "median": round(float(np.median(half)), 2), "worst": round(min(half), 2)},
        "builds_to_95": {"mean": round(float(np.mean(builds)), 2), "max": max(builds)},
        "share_of_seconds_to_95": round(float(np.mean(seconds)), 3),
    }  # fmt: skip


def best_half(land: Landscape, rng: np.random.Generator, rounds: int = 60) -> dict[str, Any]:
    """The variants that hindsight would build in half of the seconds: greedy growth, again and
    again from all but two.
    """
    whole, best, found = sum(land.cost.values()), list[str](), 0.0
    for _ in range(rounds):
        chosen = [best[i] for i in rng.permutation(len(best))[2:]]
        while True:
            spent = sum(land.cost[label] for label in chosen)
            left = [v for v in land.labels if v not in chosen and spent + land.cost[v] <= whole / 2]
            if not left:
                break
            chosen.append(max(left, key=lambda v: land.share(frozenset([*chosen, v]))))
        if (share := land.share(frozenset(chosen))) > found:
            best, found = chosen, share
    return {"order": "best half in hindsight", "share": round(found, 2), "variants": sorted(best)}


def say(row: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("trials", type=int)
    parser.add_argument("seeds", type=int)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--half", default="search")  # holdout: what nothing was tuned on
    parser.add_argument("--samplers", default="sets,tpe,nsga2,random,gp")
    parser.add_argument("--no-builds", action="store_true")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    land = Landscape(real_table(given.overrides), given.half)
    say({"variants": len(land.labels), "ensembles": land.exact.ensembles,
         "front": len(land.exact.front), "seconds": round(sum(land.cost.values())),
         "on_front": sorted({label for m in land.exact.front for label in m}),
         "samples": int(land.scorer.mask.sum()),
         "dense_seconds": round(seconds_of(land.table, DENSE))})  # fmt: skip
    compare(land, given.samplers.split(","), given.trials, given.seeds)
    if not given.no_builds:
        variants = {label: land.table.variants[label] for label in land.labels}
        say(by_builds(land, "unlike each other", [next_build.spread(variants)]))


def compare(land: Landscape, samplers: list[str], trials: int, seeds: int) -> None:
    scorer: Any = land
    looked = exact_front.looked_at(land.table, scorer)
    scores: list[Scores | None] = [land(land.table, members) for members in looked]
    share = exact_front.shares(land.exact, scores)[-1]
    say({"sampler": "greedy", "trials": len(looked), "share": round(share, 2)})
    for name in samplers:
        say(by_trials(land, name, seeds, trials))
    say(approximation(land))
    greedy = Replay(optuna.create_study(), looked, scores, [0.0] * len(looked))
    say(by_seconds(land, "greedy", [greedy]))
    rng = np.random.default_rng(0)
    say(best_half(land, rng))
    say(by_builds(land, "pool", [land.labels]))
    say(by_builds(land, "random", [rng.permutation(land.labels).tolist() for _ in range(200)]))
    for name in samplers:
        replays = [run(land, name, seed, trials, queue=False) for seed in range(seeds)]
        say(by_seconds(land, name, replays))
        orders = [order_of(land, replay.study) for replay in replays]
        say(by_builds(land, f"{name}, first named", orders))


if __name__ == "__main__":
    main()
