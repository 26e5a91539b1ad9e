"""The ensembles of arXiv 2511.22483: single variants (section III), precisions and seeds (section
IV), and what three precisions store.
"""

from collections.abc import Mapping
from dataclasses import replace

from ptsearch.evaluation.table import DENSE, Table
from ptsearch.search.study import Members
from ptsearch.variant import Variant

PRECISIONS = (3, 4, 8)  # bits of the published ensembles
# Bits per weight of 3 + 4 + 8 bits in groups of 64: each with a scale per group of its own, nested.
APART, NESTED = 15.75, 9.5


def singles(table: Table) -> list[Members]:
    """Section III: every single variant of the pool that may vote."""
    table.ensure([DENSE, *table.variants])
    return [(label,) for label in table.voters()]


def ensembles(table: Table) -> list[Members]:
    """Section IV: ensembles of precisions and of seeds. ValueError: the pool has none."""
    usable = {label: table.variants[label] for (label,) in singles(table)}
    members = precisions(usable) + seeds(usable)
    if not members:
        raise ValueError(
            "the pool has no method with 3, 4 and 8 bits, and no two seeds of one method and "
            f"bit-width (it has {', '.join(usable)}); try pool=seeds"
        )
    return members


def precisions(variants: Mapping[str, Variant]) -> list[Members]:
    """For each method that has all of 3, 4 and 8 bits, the first variant of each."""
    first: dict[str, dict[int, str]] = {}
    for label, variant in variants.items():
        first.setdefault(variant.method, {}).setdefault(variant.bits, label)
    complete = (labels for labels in first.values() if labels.keys() >= set(PRECISIONS))
    return [tuple(labels[bits] for bits in PRECISIONS) for labels in complete]


def seeds(variants: Mapping[str, Variant]) -> list[Members]:
    """Groups of two variants or more that differ only in their seed."""
    groups: dict[Variant, list[str]] = {}
    for label, variant in variants.items():
        groups.setdefault(replace(variant, seed=0), []).append(label)
    return [tuple(labels) for labels in groups.values() if len(labels) > 1]


def about_bytes(table: Table) -> list[str]:
    """What 3 + 4 + 8 bits store compared with the dense model, as separate variants and nested: of
    the pool's variants, else computed from bits; [] where no variant shows which weights are
    quantized.
    """
    table.ensure([DENSE, *table.variants])
    entries = {label: entry for label, entry in table.entries.items() if not entry.left_out}
    tensors = {label: entry.cost.tensors for label, entry in entries.items()}
    shared = [
        sum(size for digest, size in each.items() if digest in tensors[DENSE])
        for each in tensors.values()
    ]
    linears = max(shared) - min(shared)  # bytes of the dense model's
    variants = {label: table.variants[label] for label in tensors if label in table.variants}
    cache = entries[DENSE].cost.kv_bytes
    dense = max(shared)
    text = f"weights: dense {dense / 1e9:.3f} GB"
    for label, is_nested, bits in (("3+4+8 bits", False, APART), ("the same nested", True, NESTED)):
        alike = {n: v for n, v in variants.items() if (v.method == "nested") == is_nested}
        measured = precisions(alike)
        if measured:
            together = [tensors[member] for member in measured[0]]
            stored = float(sum(dict(t for each in together for t in each.items()).values()))
        else:
            stored = min(shared) + linears * bits / 16
        more = 100 * (stored + 3 * cache) / (dense + cache)
        text += (
            f"; {label} {stored / 1e9:.3f}, {100 * stored / dense:.0f} % of dense"
            f" ({more:.0f} % with a KV cache per member{'' if measured else '; from bits'})"
        )
    return [text] if linears else []
