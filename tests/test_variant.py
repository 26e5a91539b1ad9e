"""Laws of a variant's identity, its label and its rank in a tie."""

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest

from ptsearch.variant import Variant, expand_pool, from_fields, unique_labels

BASE = Variant("base", "r0", "gptq", bits=4, group_size=64, calibration="c")
OTHER: dict[str, Any] = {
    "model": "other",
    "revision": "r1",
    "method": "awq",
    "backend": "gptqmodel",
    "bits": 3,
    "group_size": 32,
    "sym": False,
    "actorder": "static",
    "damp_percent": 0.1,
    "act_bits": 8,
    "kv_bits": 4,
    "kv_window": 32,
    "decode_schedule": "4:3",
    "calibration": "d",
    "seed": 1,
    "rounding_seed": 0,
    "method_args": (("a", "b"),),
    "build_version": -1,
}


@pytest.mark.parametrize("field", [field.name for field in fields(Variant)])
def test_every_field_changes_the_id(field: str) -> None:
    assert replace(BASE, **{field: OTHER[field]}).id != BASE.id


def test_a_variant_survives_json_and_keeps_its_id() -> None:
    variant = replace(BASE, rounding_seed=3, act_bits=8, method_args=(("a", "b"),))
    assert from_fields(json.loads(json.dumps(asdict(variant)))).id == variant.id


def test_the_label_shows_what_differs_and_clashes_get_the_id() -> None:
    shown = replace(BASE, act_bits=8, kv_bits=2, rounding_seed=1, sym=False)
    assert shown.label == "gptq-4b-g64-asym-a8-kv2-s0-r1"
    window = replace(BASE, kv_window=32)
    assert set(unique_labels([BASE, window])) == {
        f"gptq-4b-g64-s0-{BASE.id[:4]}",
        f"gptq-4b-g64-s0-{window.id[:4]}",
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("act_bits", 5), ("kv_bits", 7), ("kv_window", -1), ("bits", 9), ("decode_schedule", "4x8")],
)
def test_widths_that_do_not_exist_are_errors(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        replace(BASE, **{field: value})


def test_ties_go_by_bits_then_activations_then_cache() -> None:
    order = [
        replace(BASE, bits=8, act_bits=4, kv_bits=2),
        replace(BASE, bits=4),
        replace(BASE, bits=4, kv_bits=8),
        replace(BASE, bits=4, act_bits=8),
    ]
    assert sorted(order, key=lambda variant: -variant.precision) == order


def test_kivi_keeps_a_recent_window_where_nothing_else_is_said() -> None:
    rows = [
        {"method": ["kivi", "kvquant", "rtn"], "bits": 8, "kv_bits": 4},
        {"method": "kivi", "kv_bits": 4, "kv_window": 0},
        {"method": "rtn", "bits": 4},
    ]
    pool = expand_pool(Variant("m", "0"), rows, {}, "c")
    assert [variant.kv_window for variant in pool] == [32, 0, 32, 0, 0]
