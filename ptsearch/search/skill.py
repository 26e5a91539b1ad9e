"""Whether the dense model can do at all what its variants are compared on."""

import math

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.scoring.scores import MMLU, unskilled
from ptsearch.search.scorer import EnsembleScorer, scorers
from ptsearch.search.study import study_config

MAX_NATS_PER_BYTE = 1.5  # of plain English; small language models need 0.6 to 1.0, chance 5.5


def check(table: Table) -> dict[str, EnsembleScorer]:
    """Evaluate the dense model, before any variant is built, and return the `scorers`; what it
    shows no skill in becomes the first of the table's notes.

    ValueError: there is something, and `study.need_skill` asks for skill; or as `scorers`.
    """
    scorers(table)  # raises before hours are spent
    table.ensure([DENSE])
    parts = scorers(table)
    weak = without_skill(table, parts["search"])
    if not weak:
        return parts
    remark = f"{table.base.name}, with this tokenizer and prompt form, shows no skill: {weak}"
    if study_config(table.config).need_skill:
        raise ValueError(
            f"{remark}\ncheck its chat template, benchmarks.prompt=raw and its tokenizer "
            "(+check=model); study.need_skill=false goes on"
        )
    table.model.notes.insert(0, remark)
    return parts


def without_skill(table: Table, scorer: EnsembleScorer) -> str:
    """In words; "" where the dense model is above the majority class in all that weighs."""
    if DENSE in table.degenerate():
        return "its output is not finite"
    reasons = []
    weights = scorer.config.trust.weights
    asked = [name for name in scorer.bars if weights.get(name, name == MMLU)]
    bars = {name: scorer.majority[f"{name}.accuracy"] for name in asked}
    if below := unskilled(scorer(table, [DENSE]), bars):
        reasons.append(f"not above the most frequent label on {', '.join(below)}")
    nats = math.log(table.meta(DENSE).perplexity or math.inf) * table.model.tokens_per_byte
    if nats > MAX_NATS_PER_BYTE:
        reasons.append(f"{nats:.1f} nats per byte of plain English ({MAX_NATS_PER_BYTE} at most)")
    return "; ".join(reasons)
