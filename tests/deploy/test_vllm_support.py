"""In which form a member goes to a target."""

from pathlib import Path
from typing import Any

import pytest

from ptsearch.deploy import vllm_support
from ptsearch.variant import Variant


@pytest.mark.parametrize(
    ("bits", "sym", "inputs", "target", "runs"),
    [
        (4, True, None, "cpu", True),
        (4, False, None, "cpu", True),
        (8, True, None, "cpu", False),
        (8, True, 8, "cpu", True),
        (3, True, None, "cpu", False),
        (3, True, None, "cuda", False),
        (8, True, None, "cuda", True),
        (8, False, None, "cuda", False),
        (4, False, None, "cuda", True),
    ],
)
def test_forms_that_vllm_was_found_to_run(bits, sym, inputs, target, runs) -> None:
    group: dict[str, Any] = {"weights": {"num_bits": bits, "symmetric": sym}}
    if inputs:
        group["input_activations"] = {"num_bits": inputs}
    config = {"quant_method": "compressed-tensors", "config_groups": {"group_0": group}}
    assert bool(vllm_support.unsupported(config, target)) == (not runs)


def test_older_formats_that_vllm_was_found_to_run() -> None:
    gptq = {"quant_method": "gptq", "bits": 4, "desc_act": True}
    assert "desc_act" in vllm_support.unsupported(gptq, "cpu")
    assert not vllm_support.unsupported(gptq, "cuda")
    assert "awq at 3 bits" in vllm_support.unsupported({"quant_method": "awq", "bits": 3}, "cuda")


def test_a_layout_of_our_own_is_written_dense(tmp_path: Path) -> None:
    variant = Variant("tiny", "0", "rtn", bits=3, group_size=32)
    (tmp_path / "codes.json").write_text("{}")
    assert (
        vllm_support.form_of(variant, tmp_path, "cuda").why == "its layout is specific to ptsearch"
    )
    assert vllm_support.form_of(variant, tmp_path, "local").stored
