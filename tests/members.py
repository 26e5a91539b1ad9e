"""An exported ensemble of three members of one tiny model."""

from pathlib import Path

import pytest
import torch
import yaml
from tiny import write_tiny_model

from ptsearch import store
from ptsearch.deploy.folder import FORMAT


def write_ensemble(out: Path, checkpoints: dict[str, Path]) -> Path:
    """The least that can be loaded: members in the order given."""
    with store.new_folder(out) as part:
        for label, checkpoint in checkpoints.items():
            target = part / "members" / label
            target.mkdir(parents=True)
            for file in checkpoint.iterdir():
                (target / file.name).write_bytes(file.read_bytes())
        described = {
            "format": FORMAT,
            "settings": {"engine.dtype": "float32"},
            "vote": {
                "rule": "majority",
                "order": list(checkpoints),
                "ask": list(reversed(checkpoints)),
            },
            "members": [{"label": label, "folder": f"members/{label}"} for label in checkpoints],
        }
        (part / "ensemble.yaml").write_text(yaml.safe_dump(described), encoding="utf-8")
    return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three members with embeddings and norms in common."""
    from safetensors.torch import load_file, save_file

    root = tmp_path_factory.mktemp("ensemble")
    checkpoints = {}
    for seed, label in enumerate(("high", "middle", "low")):
        checkpoint = write_tiny_model(root / label)
        weights = load_file(checkpoint / "model.safetensors")
        torch.manual_seed(seed)
        for name, tensor in weights.items():
            if "proj" in name:
                weights[name] = tensor + torch.randn_like(tensor)
        save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
        checkpoints[label] = checkpoint
    return write_ensemble(root / "out", checkpoints)
