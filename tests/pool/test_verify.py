"""Reading a checkpoint back: whole, or layer by layer where there is no room for it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import write_tiny_model
from tiny_pool import TEXT, build_tiny, pool

from ptsearch import store
from ptsearch.models import loading
from ptsearch.pool import build, verify
from ptsearch.pool import calibration as calibrations

ROWS: list[dict[str, Any]] = [
    {"method": "rtn", "bits": 3, "sym": [True, False]},
    {"method": "smoothquant", "bits": 8, "act_bits": 8, "group_size": -1},
    {"method": "rptq", "bits": 4, "act_bits": 4, "damp_percent": 0.05},
    {"method": "nested", "bits": 4, "damp_percent": 0.05},
    {"method": "squeezellm", "bits": 3},
]
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
           "shared_expert_intermediate_size": 32, "decoder_sparse_step": 1}  # fmt: skip


@pytest.mark.parametrize(
    ("architecture", "sizes", "rows"),
    [
        ("Llama", {}, ROWS),
        ("Gemma2", {"sliding_window": 16}, ROWS[:1]),
        ("Qwen3Moe", EXPERTS, ROWS[:1]),
    ],
)
def test_layer_by_layer_finds_what_loading_whole_finds(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    sizes: dict[str, Any],
    rows: list[dict[str, Any]],
) -> None:
    folder = write_tiny_model(tmp_path / "base", architecture, **sizes)
    variants = pool(rows)
    metas = {}
    for way, fits in (("whole", True), ("layer by layer", False)):
        monkeypatch.setattr(verify, "_fits", lambda _, fits=fits: fits)
        build_tiny(folder, tmp_path / way, variants)
        metas[way] = [
            store.read_json(build.folder_of(tmp_path / way, variant) / store.META)
            for variant in variants
        ]
        assert {meta["read_back"] for meta in metas[way]} == {way}
    for whole, layered in zip(*metas.values(), strict=True):
        assert layered["perplexity"] == pytest.approx(whole["perplexity"], rel=0.003)
        for key in ("tensors", "degenerate"):
            assert layered[key] == whole[key]


def test_perplexity_of_a_model_that_knows_nothing(tiny_model: Path) -> None:
    model, tokenizer = loading.load(tiny_model, "float32")
    model.lm_head.weight.data = torch.zeros_like(model.lm_head.weight)
    chunks = calibrations.chunks(tokenizer, TEXT, 64)[:3]
    assert verify.perplexity(model, chunks) == pytest.approx(len(tokenizer), rel=1e-4)


@pytest.mark.slow
def test_a_pool_of_a_model_larger_than_the_memory_that_is_allowed(tmp_path: Path) -> None:
    """The limit is the process's own (`ulimit -d`), and of it most is taken by torch itself."""
    sizes = {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
             "head_dim": 64, "num_hidden_layers": 200}  # fmt: skip
    folder = write_tiny_model(tmp_path / "base", max_shard_size="40MB", **sizes)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(tmp_path), str(ROOM)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "1000000", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    limit, *read_back = done.stdout.split(maxsplit=1)
    stored = sum(shard.stat().st_size for shard in folder.glob("*.safetensors"))
    assert int(limit) < stored
    assert read_back == ["['layer by layer', 'layer by layer']\n"]


# Bytes beside what libraries hold. The variant is one file of 0.43 GB, whose mapping counts.
ROOM = 650_000_000
LIMITED = """
import resource, sys
from pathlib import Path
from tiny_pool import CALIBRATION, build_tiny, pool
from tiny import write_tiny_model
from ptsearch import store
from ptsearch.variant import Variant

base, root = map(Path, sys.argv[1:3])
variants = pool([{"method": "gptq", "bits": 4, "damp_percent": 0.05}])
build_tiny(write_tiny_model(root / "small"), root / "first", variants)
held = next(line for line in open("/proc/self/status") if line.startswith("VmData:"))
limit = int(held.split()[1]) * 1024 + int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
build_tiny(base, root / "second", variants)
metas = map(store.read_json, root.glob("second/variants/*/meta.json"))
print(limit, [meta["read_back"] for meta in metas])
"""
