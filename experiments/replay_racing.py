"""What racing saves on an evaluated pool, and how often it stops what is on the front.

    python experiments/replay_racing.py REPLAYS pool=wide [OVERRIDES] [--races search,joined]

Each replay asks the samples in another random order; `joined` races on both scorers as if all were
the search half; `replicated` on every sample ten times over, as a benchmark of ten times the size
would look. A stop is false if the variant is on the true front of what was raced on;
`hindsight_saves` is what stopping all others after the first look would save. Prints JSON.
"""

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

import numpy as np
from real_table import real_table

from ptsearch.benchmarks.parsing import UNUSABLE
from ptsearch.evaluation.table import Table
from ptsearch.search import racing
from ptsearch.search.scorer import EnsembleScorer, scorers


def replay(
    table: Table, scorer: EnsembleScorer, codes: Any, labels: list[str], seed: int
) -> dict[str, Any]:
    course = racing.plan_course(scorer, racing.LOOKS, np.random.default_rng(seed))
    metas = [table.entries[label].meta for label in labels]
    everything = racing.open_field(scorer, [table.variants[label] for label in labels], metas)
    stoppable = set(racing.hopeless(course, racing.LOOKS - 1, codes, everything))
    masked = np.full_like(codes, UNUSABLE)
    gone, asked, early, field = set[int](), 0, 0, everything
    for look, new in enumerate(course.looks):
        asked += new.size * (len(labels) - len(gone))
        masked[:, new] = codes[:, new]
        stopped = racing.hopeless(course, look, masked, field)
        field = field.without(stopped)
        gone |= set(stopped)
        early += len(stopped) if look + 1 < len(course.looks) else 0
    return {
        "asked": asked,
        "early": early,
        "stopped": len(gone),
        "false": len(gone - stoppable),
        "at_least": codes.size - len(stoppable) * (codes.shape[1] - course.looks[0].size),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("replays", type=int)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--races", default="search,joined,replicated")
    parser.add_argument("--members", default="5,3,1")  # study.max_members
    given = parser.parse_args()
    members = [int(m) for m in given.members.split(",")]
    report(real_table(given.overrides), given.races.split(","), members, given.replays)


def report(table: Table, races: list[str], sizes: list[int], replays: int) -> None:
    for name in races:
        for members in sizes:
            assert table.config.study is not None
            table.config.study.max_members = members
            scorer = scorers(table)["search" if name == "search" else "all"]
            labels = [label for label in table.variants if label not in table.degenerate()]
            codes = np.stack([table.entries[label].codes[scorer.mask] for label in labels])
            scorer, codes = replicated(scorer, codes, 10 if name == "replicated" else 1)
            rows = [replay(table, scorer, codes, labels, seed) for seed in range(replays)]
            whole, holdout = codes.shape[1] * len(labels), int((~scorer.mask).sum())
            asked, early, stopped, false, at_least = (
                np.array([row[key] for row in rows])
                for key in ("asked", "early", "stopped", "false", "at_least")
            )
            saved, spared = whole - asked.mean(), stopped.mean() * holdout
            result = {
                "race": name, "samples": codes.shape[1], "max_members": members, "replays": replays,
                "search_samples_saved": round(saved / whole, 4),
                "hindsight_saves": round(1 - float(at_least.mean()) / whole, 4),
                "stopped_early": round(float(early.mean()), 2),
                "stopped": round(float(stopped.mean()), 2),
                "saved_with_holdout": round((saved + spared) / (whole + holdout * len(labels)), 4),
                "false_stops_share": float((false > 0).mean()),
            }  # fmt: skip
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()


def replicated(scorer: EnsembleScorer, codes: Any, times: int) -> tuple[EnsembleScorer, Any]:
    """Every sample `times` over."""
    if times == 1:
        return scorer, codes
    asked, n = scorer.asked, codes.shape[1]
    parts = tuple(
        part._replace(rows=np.concatenate([part.rows + n * i for i in range(times)]))
        for part in asked.parts
    )
    columns = ("gold", "n_labels", "group", "abstain_ok", "holdout")
    tiled = {name: np.tile(getattr(asked, name), times) for name in columns}
    asked = asked._replace(**tiled, parts=parts, stratum=None)
    return replace(scorer, asked=asked, mask=np.tile(scorer.mask, times)), np.tile(codes, times)


if __name__ == "__main__":
    main()
