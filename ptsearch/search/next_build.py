"""Which variants to build where not all are: few that are unlike each other, in one pass.

The most precise is the first; then always the one that is least like those chosen so far.
"""

from collections.abc import Mapping
from dataclasses import asdict
from math import log2

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.variant import Variant

OTHER_FIELD = 0.25  # how much a differing field counts, in halvings of the bits


def build_some(table: Table, number: int) -> list[str]:
    """Build and evaluate `number` variants of the pool and leave the others out; their labels."""
    chosen = spread(table.variants)[:number]
    for label in table.variants:
        if label not in chosen:
            table.leave_out(label, f"not among the study.max_builds={number} built")
    table.ensure([DENSE, *chosen])
    return chosen


def spread(variants: Mapping[str, Variant]) -> list[str]:
    """All labels, the most precise variant first, then each time the one farthest from its nearest
    of those before.
    """
    order = [max(variants, key=lambda label: variants[label].precision)]
    while len(order) < len(variants):
        distances = {
            label: min(distance(variant, variants[before]) for before in order)
            for label, variant in variants.items()
            if label not in order
        }
        order.append(max(distances, key=lambda label: distances[label]))
    return order


def distance(a: Variant, b: Variant) -> float:
    """Between two variants, by bits and by the number of other fields in which they differ."""
    fields, others = asdict(a), asdict(b)
    differing = sum(fields[name] != others[name] for name in fields if name != "bits")
    return abs(log2(a.bits / b.bits)) + OTHER_FIELD * differing
