"""How a study's own time and memory grow: trials, variants and samples, on made-up votes.

    python experiments/scale.py trials --trials 10000 --variants 24 --sampler tpe
    python experiments/scale.py sizes

`trials`: one study in SQLite; milliseconds of a trial without MLflow, the median of 50 around each
number. `sizes`: one score of an ensemble of five, and the whole table's memory, by samples and by
variants, with the exponent between neighbours. Nothing is built or evaluated.
"""

import argparse
import json
import math
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import optuna
from fakes import fake_table

from ptsearch.evaluation.table import Table
from ptsearch.scoring.scores import Scores
from ptsearch.search import trials
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.study import CompletedTrial, Members, open_study

AROUND = 50  # trials of a median


def table_of(folder: str, variants: int, samples: int, **study: object) -> Table:
    """`samples` in all, spread over six scenarios of five benchmarks."""
    bits = tuple(3 + i % 6 for i in range(variants))
    return fake_table(Path(folder), bits, max(samples // 6, 60), **study)


def run_trials(number: int, variants: int, samples: int, sampler: str) -> dict[str, object]:
    """Seconds between ends of trials, less their scoring, by the number of the trial."""
    ends, scoring = [time.perf_counter()], [0.0]
    with tempfile.TemporaryDirectory() as folder:
        table = table_of(folder, variants, samples, trials=number, sampler=sampler)
        scorer = scorers(table)["search"]
        score = EnsembleScorer.__call__

        def timed(self: EnsembleScorer, table: Table, members: Members) -> Scores:
            started = time.perf_counter()
            found = score(self, table, members)
            scoring[-1] += time.perf_counter() - started
            return found

        def on_trial(trial: CompletedTrial, _scores: Scores, _feasible: bool) -> str:
            ends.append(time.perf_counter())
            scoring.append(0.0)
            return ""

        EnsembleScorer.__call__ = timed  # type: ignore[method-assign]
        study = open_study(table.config, f"sqlite:///{folder}/optuna.db", {"samples": samples})
        trials.search(trials.Search(study, table, scorer, on_trial))
    own = [b - a - s for a, b, s in zip(ends, ends[1:], scoring, strict=False)]
    medians = {
        at: round(1000 * statistics.median(own[at - AROUND : at]), 1)
        for at in (100, 300, 1000, 3000, 10_000, 30_000)
        if at <= len(own)
    }
    return {
        "sampler": sampler, "variants": variants, "samples": samples, "trials": len(own),
        "own_ms": medians,
        "scoring_ms": round(1000 * statistics.median(scoring[:-1]), 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }  # fmt: skip


def sizes() -> None:
    """One score of five members by samples, then by variants in the table."""
    rows: list[dict[str, object]] = []
    for variants, samples in (
        (8, 10_000), (8, 100_000), (8, 1_000_000), (10, 10_000), (100, 10_000), (1000, 10_000)
    ):  # fmt: skip
        with tempfile.TemporaryDirectory() as folder:
            table = table_of(folder, variants, samples)
            started = time.perf_counter()
            scorer = scorers(table)["search"]
            opened = time.perf_counter() - started
            members, times = tuple(table.variants)[:5], []
            for _ in range(5):
                started = time.perf_counter()
                scorer(table, members)
                times.append(time.perf_counter() - started)
        codes = sum(entry.codes.nbytes for entry in table.entries.values())
        seconds = statistics.median(times)
        row = {"variants": variants, "samples": samples, "score_ms": round(1000 * seconds, 2),
               "open_s": round(opened, 2), "answers_mb": round(codes / 1e6, 1)}  # fmt: skip
        before = rows[-1] if rows and variants == rows[-1]["variants"] else None
        if before:
            ratio = seconds * 1000 / float(str(before["score_ms"]))
            grown = samples / int(str(before["samples"]))
            row["exponent"] = round(math.log(ratio) / math.log(grown), 2)
        rows.append(row)
        show(row)


def show(row: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(row) + "\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("trials", "sizes"))
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--variants", type=int, default=24)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--sampler", default="tpe")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if given.what == "sizes":
        sizes()
    else:
        show(run_trials(given.trials, given.variants, given.samples, given.sampler))


if __name__ == "__main__":
    main()
