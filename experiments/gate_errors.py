"""How often simulated gates pass, and fail, at a true difference of exactly -margin; their power.

`PYTHONPATH=.:tests python experiments/gate_errors.py [GATES]`: the recorded answers of a default
study (tests/golden) are the population. For each variant and score in which it is worse than the
dense model, the margin is exactly that difference: a gate that passes is wrong. Then, for a variant
that is as good as the dense model, how often gates at a margin pass, by number of samples.
"""

import json
import sys

import numpy as np
from gates import gate, population
from pick_power import population as recorded

from ptsearch.search.scorer import scorers

KEYS = ("trust", "adversarial", "fairness", "ethics", "ood", "mmlu")
LEAST = 0.3  # points of a difference that can be a margin


def main() -> None:
    gates = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    table, rng = recorded(), np.random.default_rng(0)
    scorer = scorers(table)["all"]
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
