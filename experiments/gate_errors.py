"""How often simulated gates pass, and fail, at a true difference of exactly -margin; their power.

`PYTHONPATH=.:tests python experiments/gate_errors.py [GATES]`: the recorded answers of a default
study (tests/golden) are the population. For each variant and score in which it is worse than the
dense model, the margin is exactly that difference: a gate that passes is wrong. Then, for a model
that flips 2 % of the dense one's answers, half of them either way, how often gates pass, by number
of samples.
"""

import json
import sys
from dataclasses import replace

import numpy as np
from gates import gate, population
from pick_power import population as recorded

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.search.scorer import EnsembleScorer, scorers

KEYS = ("trust", "adversarial", "fairness", "ethics", "ood", "mmlu")
LEAST = 0.3  # points of a difference that can be a margin
FLIPPED = 0.02  # of the dense model's answers, either way: a candidate that is as good
TIMES, MARGINS = (1, 2, 4, 8), (2, 3, 5)


def main() -> None:
    gates = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    table, rng = recorded(), np.random.default_rng(0)
    scorer = scorers(table)["all"]
    errors(table, scorer, gates, rng)
    power(table, scorer, gates // 5, rng)


def power(table: Table, scorer: EnsembleScorer, gates: int, rng: np.random.Generator) -> None:
    """A candidate that differs from the dense model at random, right as often as wrong."""
    dense = table.entries[DENSE]
    codes, gold = dense.codes.copy(), scorer.asked.gold
    right, wrong = np.flatnonzero(codes == gold), np.flatnonzero(codes != gold)
    number = round(FLIPPED * gold.size / 2)
    lost = rng.choice(right, number, replace=False)
    codes[lost] = np.where(gold[lost] == 0, 1, 0)
    won = rng.choice(wrong, number, replace=False)
    codes[won] = gold[won]
    known = replace(table, entries={**table.entries, "equal": replace(dense, codes=codes)})
    whole = population(known, scorer, "equal")
    for key in KEYS:
        for times in TIMES:
            found = [gate(whole, key, MARGINS[0], times, rng) for _ in range(gates)]
            lows = np.array([each.low for each in found])
            row = {"score": key, "truth": round(whole.truth[key], 2), "times": times}
            row |= {f"passed_at_{m}_pct": 100 * float(np.mean(lows > -m)) for m in MARGINS}
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


def errors(table: Table, scorer: EnsembleScorer, gates: int, rng: np.random.Generator) -> None:
    for label in table.variants:
        whole = population(table, scorer, label)
        gaps = [key for key in whole.plan.keys if key.endswith((".dpd", ".eod"))]
        for key in (*KEYS, *gaps):
            margin = -whole.truth[key]
            if margin >= LEAST:
                found = [gate(whole, key, margin, 1, rng) for _ in range(gates)]
                passed = 100 * np.mean([each.low > -margin for each in found])
                failed = 100 * np.mean([each.high < -margin for each in found])
                row = {"variant": label, "score": key, "margin": round(margin, 2)}
                sys.stdout.write(
                    json.dumps(row | {"passed_pct": passed, "failed_pct": failed}) + "\n"
                )
                sys.stdout.flush()


if __name__ == "__main__":
    main()
