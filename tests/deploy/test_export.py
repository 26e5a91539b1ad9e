"""An exported folder: what each target gets, that its texts parse, and what stops an export."""

import errno
import json
import os
import re
import subprocess
import tomllib
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from exports import DENSE, POOL, write
from huggingface_hub import ModelCard
from safetensors import safe_open

from ptsearch import engine as engines
from ptsearch import store
from ptsearch.config import TARGETS, EngineConfig, ExportConfig
from ptsearch.deploy import export
from ptsearch.deploy import folder as exported
from ptsearch.deploy import manifests as deploy
from ptsearch.deploy.ensemble import PrecisionEnsemble
from ptsearch.engine import targets
from ptsearch.models import loading
from ptsearch.models.base_model import BaseModel
from ptsearch.models.prompting import Prompter
from ptsearch.pool import build
from ptsearch.pool.calibration import Calibration
from ptsearch.variant import from_fields


@pytest.mark.parametrize("target", TARGETS)
def test_every_text_parses(target: str, study, cache, tmp_path) -> None:
    folder, described, members = write(study, cache, tmp_path / "out", target)
    assert list(members) == [v.label for v in reversed(POOL)]  # the most precise first
    assert described.cost.of_dense == pytest.approx(90)
    assert described.lazy_order == [v.label for v in POOL]
    subprocess.run(["bash", "-n", str(folder / "serve.sh")], check=True)
    assert os.access(folder / "serve.sh", os.X_OK)
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    assert len(services) == (1 if described.in_process else 4)
    assert all(s["healthcheck"]["test"] and s["mem_limit"] for s in services.values())
    gateway = services.pop("ptsearch-ensemble")
    assert gateway["command"][-1] == "serve.max_changed=${MAX_CHANGED:-0}"
    assert gateway.get("depends_on", {}).keys() == services.keys()
    for (label, path), service in zip(members.items(), services.values(), strict=False):
        arguments = service["command"]
        assert arguments[arguments.index("--served-model-name") + 1] == label
        assert arguments[arguments.index("--model") + 1] == f"/ensemble/members/{path.name}"
    manifests = [
        part
        for path in (folder / "kubernetes").iterdir()
        for part in yaml.safe_load_all(path.read_text())
    ]
    kinds = [part["kind"] for part in manifests]
    assert kinds.count("Deployment") == kinds.count("Service") == len(services) + 1
    for part in manifests:
        if part["kind"] == "Deployment":
            (container,) = part["spec"]["template"]["spec"]["containers"]
            assert container["readinessProbe"]["httpGet"]["path"] == "/health"
            restarted = container["livenessProbe"]["httpGet"]["path"] == "/health"
            assert restarted == (container["name"] != "ptsearch-ensemble")
            assert container["resources"]["limits"]["memory"]
    hosts = {f"http://{p['metadata']['name']}:8000/v1" for p in manifests if p["kind"] == "Service"}
    engines_of = [a for a in gateway["command"] if a.startswith("serve.engines=")]
    for given in engines_of:
        assert set(given.removeprefix("serve.engines=[").removesuffix("]").split(",")) < hosts


def test_the_image_is_built_from_the_checkout(study, cache, tmp_path) -> None:
    """No package index may have ptsearch; what is copied is all that the package is built from."""
    folder = write(study, cache, tmp_path / "out").folder
    services = yaml.safe_load((folder / "compose.yaml").read_text())["services"]
    build = services["ptsearch-ensemble"]["build"]
    assert build["context"].startswith("${PTSEARCH_SOURCE:?")  # said where it is missing
    steps = [line.split() for line in build["dockerfile_inline"].splitlines()]
    copied = {name for step in steps if step[0] == "COPY" for name in step[1:-1]}
    root = Path(__file__).parents[2]
    assert {name for name in copied if not (root / name).exists()} == set()
    project = tomllib.loads((root / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    named = [project["project"]["readme"], *project["project"]["license-files"]]
    assert copied >= {"pyproject.toml", *named, *wheel["packages"], *wheel["force-include"]}
    (install,) = [step for step in steps if step[:3] == ["RUN", "pip", "install"]]
    assert install[-1] == "."


def test_the_card_has_the_hubs_metadata_and_claims_nothing_unproven(study, cache, tmp_path) -> None:
    folder = write(study, cache, tmp_path / "out").folder
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["base_model"] == ["someone/tiny"]
    assert metadata["base_model_relation"] == "quantized"
    assert metadata["license"] == "other"
    assert {"rtn", "3-bit", "8-bit"} <= set(metadata["tags"])
    heading, _, rest = text.partition("\n\n")
    assert heading == "\n# tiny, ensemble of 3"
    assert rest.startswith("**Worse than dense: mmlu -16.4 (-31.0 to -4.7).**")
    assert "90 % of the dense model's" in text
    assert "| one after the other | 12 | 34 |" in text
    members = re.findall(r"`(?:rtn|gptq)-(\d)b[^`]*`, read by compressed-tensors (.*)", text)
    readers = {"3": "0.18 or newer", "4": "of any version", "8": "of any version"}
    assert members
    assert all(readers[bits] == reader for bits, reader in members)
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.license) == (["someone/tiny"], "other")
    assert card.data.to_dict()["base_model_relation"] == "quantized"
    certificate = json.loads((folder / "certificate.json").read_text())
    assert certificate == study["front"][0]["certificate"]


@pytest.mark.parametrize("target", ["local", "cpu"])
def test_what_the_servers_hold_is_said(target: str, study, cache, tmp_path) -> None:
    """Servers of their own share nothing, and some members are written dense."""
    folder, described, members = write(study, cache, tmp_path / "out", target)
    files = [file for place in members.values() for file in place.glob("*.safetensors")]
    apart = (sum(file.stat().st_size for file in files) + 3 * 51_200) / 1e9
    expected = 0.09 if target == "local" else apart
    assert described.cost.served_gb == pytest.approx(expected)
    said = f"As written here, they hold {expected:.3f} GB" in (folder / "README.md").read_text()
    assert said == (target == "cpu")


@pytest.mark.parametrize("name", ["model-2.safetensors", "additional_chat_templates.jinja"])
def test_a_file_that_the_export_did_not_write(name: str, study, cache, tmp_path) -> None:
    folder, _, members = write(study, cache, tmp_path / "out")
    (members[POOL[0].label] / name).write_text("{{ messages }}")
    with pytest.raises(ValueError, match=f"{name} is not part of the export"):
        exported.open_folder(folder)


def test_the_license_is_the_base_models(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\nlicense: mit\ntags: [x]\n---\n# A model\n")
    assert deploy.license_of("hub", tmp_path) == "mit"
    assert deploy.license_of("wheel", tmp_path / "none") == "apache-2.0"
    (tmp_path / "README.md").write_text("# A model\n")
    assert deploy.license_of("hub", tmp_path) == "other"


def test_what_a_target_does_not_run_is_written_dense(study, cache, tmp_path) -> None:
    exported_ = write(study, cache, tmp_path / "out", "cpu")
    said = {row.label: row for row in exported_.description.members}
    for variant in POOL:
        row, folder = said[variant.label], exported_.members[variant.label]
        quantized = "quantization_config" in store.read_json(folder / "config.json")
        assert quantized == (variant.bits == 4) == (row.form == "stored") == (not row.why)
    three = POOL[0]
    stored, dense = (
        loading.load(folder)[0].state_dict()
        for folder in (build.folder_of(cache, three), exported_.members[three.label])
    )
    weights = [name for name in dense if name.endswith("proj.weight")]
    assert weights
    with safe_open(exported_.members[three.label] / "model.safetensors", "pt") as file:
        assert not [name for name in file.keys() if "scale" in name or "packed" in name]  # noqa: SIM118
    for name in weights:
        assert (stored[name] == dense[name]).all()


def test_a_member_that_rounds_at_run_time_goes_to_no_vllm(study, cache, tmp_path) -> None:
    rounding = replace(POOL[0], kv_bits=4)
    with pytest.raises(ValueError, match=r"needs the KV cache rounded.*export\.target=local"):
        targets.form_of(rounding, build.folder_of(cache, POOL[0]), "cuda")
    assert targets.form_of(rounding, build.folder_of(cache, POOL[0]), "local").stored
    two = replace(POOL[0], decode_schedule="4:2")
    with pytest.raises(ValueError, match="two checkpoints in turn"):
        targets.form_of(two, build.folder_of(cache, POOL[0]), "local")


def test_a_member_says_what_it_rounds_while_it_runs(study, cache, tmp_path) -> None:
    """The engine looks for that in meta.json."""
    exported_ = write(study, cache, tmp_path / "out")
    for variant in POOL:
        meta = store.read_json(exported_.members[variant.label] / store.META)
        assert from_fields(meta["variant"]) == variant
        assert loading.checkpoint_of(exported_.members[variant.label])[0].samefile(
            exported_.members[variant.label]
        )


@pytest.mark.parametrize(
    "change",
    [{"checkpoint": "/etc"}, {"trust_remote_code": True}, {"variant": {"method": "path"}}],
)
def test_a_meta_that_leads_elsewhere_is_refused(change, study, cache, tmp_path) -> None:
    folder = write(study, cache, tmp_path / "out").folder
    path = folder / "members" / POOL[0].label / store.META
    path.write_text(json.dumps(store.read_json(path) | change))
    (folder / store.MANIFEST).unlink()
    store._seal(folder)
    with pytest.raises(ValueError, match=r"meta\.json: a member must consist of safetensors"):
        exported.open_folder(folder)


def test_weights_are_linked_where_they_can_be_and_copied_elsewhere(
    study, cache, tmp_path, monkeypatch
) -> None:
    source = build.folder_of(cache, POOL[1]) / "model-00001.safetensors"
    linked = write(study, cache, tmp_path / "linked").members[POOL[1].label]
    assert (linked / source.name).samefile(source)
    assert not (linked / "config.json").samefile(source.with_name("config.json"))

    def other_device(*_: Any) -> None:
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr(os, "link", other_device)
    copied = write(study, cache, tmp_path / "copied").members[POOL[1].label]
    assert not (copied / source.name).samefile(source)
    assert (copied / source.name).read_bytes() == source.read_bytes()


def test_weights_behind_a_symbolic_link(tmp_path) -> None:
    """As the hub's cache has them, relative to their own folder."""
    snapshot, blobs = tmp_path / "snapshots" / "c0ffee", tmp_path / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    (blobs / "b10b").write_bytes(b"weights")
    (snapshot / "model.safetensors").symlink_to("../../blobs/b10b")
    export._copy(snapshot, tmp_path / "out" / "member")
    copied = tmp_path / "out" / "member" / "model.safetensors"
    assert not copied.is_symlink()
    assert copied.read_bytes() == b"weights"


def test_members_exported_answer_as_the_pool_does(study, cache, tmp_path) -> None:
    ensemble = PrecisionEnsemble.from_pretrained(write(study, cache, tmp_path / "out").folder)
    alone = engines.load(build.folder_of(cache, POOL[0]), EngineConfig())
    labels = [alone.tokenizer(f" {label}").input_ids for label in ("no", "yes")]
    prompt = Prompter(alone.tokenizer).prompt("Is it?")
    expected = engines.score(alone, [prompt], [labels], lambda *_: None)[0]
    said = ensemble.answer(["Is it?"], ["no", "yes"])[0].said[POOL[0].label]
    assert said.logprobs == pytest.approx(expected, abs=0.02)


def test_a_rounded_cache_is_exported_with_what_it_was_calibrated_to(
    study, tiny_model, tmp_path
) -> None:
    text = "\n".join(f"Line {n}: {n * n} foxes jump over {n} dogs." for n in range(400))
    calibration = Calibration(text, samples=4, length=64)
    variant = replace(DENSE, method="kvquant", bits=16, kv_bits=3, calibration=calibration.identity)
    base = BaseModel("tiny", "0", tiny_model)
    build.build_pool(base, [variant], calibration, tmp_path, lambda *_: None)
    study["front"][0]["members"] = [variant.label]
    study["ask"] = {"run": [variant.label]}
    study["variants"] = {variant.label: {"id": variant.id, "fields": asdict(variant)}}
    ensemble = PrecisionEnsemble.from_pretrained(write(study, tmp_path, tmp_path / "out").folder)
    own = engines.load(build.folder_of(tmp_path, variant), EngineConfig(dtype="bfloat16"))
    served = ensemble.engines[variant.label]
    prompt = Prompter(own.tokenizer).prompt("Is it? " * 40)
    labels = [own.tokenizer(f" {label}").input_ids for label in ("no", "yes")]
    assert engines.score(served, [prompt], [labels], lambda *_: None) == engines.score(
        own, [prompt], [labels], lambda *_: None
    )


def test_the_folder_holds_how_the_study_asked(study, cache, tmp_path) -> None:
    before = write(study, cache, tmp_path / "before").description.chat
    assert (before.prompt, before.texts) == ("chat", "text")
    study["settings"]["benchmarks.prompt"], study["base"]["texts"] = "raw", "turns"
    chat = write(study, cache, tmp_path / "out").description.chat
    assert (chat.prompt, chat.texts) == ("raw", "turns")


def test_a_study_that_cannot_be_exported(study, cache, tmp_path) -> None:
    study["settings"]["vote.rule"] = "soft"
    with pytest.raises(ValueError, match="only vote=majority is served"):
        write(study, cache, tmp_path / "out")
    del study["settings"]["vote.rule"]
    del study["base"]
    with pytest.raises(ValueError, match=r"another version \(base: Field required\); run it again"):
        write(study, cache, tmp_path / "out")
    del study["front"]
    with pytest.raises(ValueError, match="has not finished"):
        write(study, cache, tmp_path / "out")


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(errno.ENOSPC, "no space")])
def test_an_export_that_was_stopped_leaves_nothing(
    stop: BaseException, study, cache, tmp_path, monkeypatch
) -> None:
    def stopped(_: object) -> str:
        raise stop

    with monkeypatch.context() as patched:
        patched.setattr(deploy, "texts", stopped)  # all members are written by then
        with pytest.raises((KeyboardInterrupt, store.FullDiskError)):
            write(study, cache, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    assert write(study, cache, tmp_path / "out").members


def test_a_checkpoint_of_another_packing_is_refused(study, cache, tmp_path) -> None:
    folder = write(study, cache, tmp_path / "out").folder
    path = folder / "members" / POOL[0].label / "config.json"
    config = store.read_json(path)
    config["quantization_config"]["version"] = "0.17.1"
    path.unlink()  # linked to the cache
    path.write_text(json.dumps(config))
    (folder / store.MANIFEST).unlink()
    store._seal(folder)
    with pytest.raises(ValueError, match=r"packed by compressed-tensors 0\.17\.1"):
        PrecisionEnsemble.from_pretrained(folder)


def test_one_member_is_a_variant(study, cache, tmp_path) -> None:
    front = study["front"][0]
    front["members"] = study["ask"]["run"] = front["members"][:1]
    text = (write(study, cache, tmp_path / "out").folder / "README.md").read_text()
    assert "# tiny, compressed by rtn-3b-g32-s0\n" in text
    assert "One compressed variant of `someone/tiny`" in text
    assert "ensemble of" not in text
    assert "It holds 0.090 GB in memory on `local`" in text


def test_a_pick_that_nothing_is(study, cache, tmp_path) -> None:
    config = ExportConfig(study="s", out=str(tmp_path / "o"), pick="smallest_as_good_as_dense")
    with pytest.raises(ValueError, match=r"nothing on this front is its smallest_as.* it has knee"):
        export.write(study, config, cache)
