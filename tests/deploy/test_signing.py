"""Signed exports: what was signed verifies, and the first thing that differs is said."""

import json
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from command import ptsearch
from exports import write
from huggingface_hub import ModelCard

from ptsearch.deploy import signing
from ptsearch.deploy.folder import SIGNATURE
from ptsearch.report.certificate import FORMAT, BenchmarkData, Certificate, SearchSettings

SCHEMA = Path(__file__).parents[2] / "docs" / "certificate-1.schema.json"
CERTIFICATE = Certificate(
    study="s", command=["python", "-m", "ptsearch", "+study=pareto"],
    base_model={"name": "tiny", "revision": "0"}, intervals={"level": 0.95, "method": "max-t"},
    samples={"ethics": {"search": {"samples": 2, "items": 2}}}, split={"salt": "ptsearch"},
    data={"ethics": BenchmarkData("0", {"a": "1"})}, rules="clean", prompt="chat", engine={},
    trust_weights={"ethics": 1.0}, search=SearchSettings(1, "tpe", 0, {}), versions={},
    holdout_reads=1, run="r", members={"rtn": "0"}, scores={"search": {"trust": 50.0}},
    unskilled=[], gains={}, verdict="no evidence",
)  # fmt: skip


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Private and public keys: `mine`, another one of the same kind, and one of RSA."""
    folder, made = tmp_path_factory.mktemp("keys"), {}
    curve = ["ecparam", "-name", "prime256v1", "-genkey", "-noout"]
    for name, new, kind in (
        ("mine", curve, "ec"), ("other", curve, "ec"), ("rsa", ["genrsa", "2048"], "rsa"),
    ):  # fmt: skip
        private, public = folder / f"{name}.key", folder / f"{name}.pub"
        out = subprocess.run(["openssl", *new], check=True, capture_output=True).stdout
        private.write_bytes(out)
        asked = ["openssl", kind, "-in", private, "-pubout", "-out", public]
        subprocess.run(asked, check=True, capture_output=True)
        made |= {name: private, f"{name}.pub": public}
    return made


@pytest.fixture
def signed(study, cache, tmp_path, keys) -> Path:
    pytest.importorskip("model_signing", reason="pip install -e '.[sign]'")
    study = {
        **study,
        "front": [{**row, "certificate": asdict(CERTIFICATE)} for row in study["front"]],
    }
    folder = write(study, cache, tmp_path / "out").folder
    signing.sign(folder, signing.signer(keys["mine"]))
    return folder


def test_what_was_signed_verifies(signed, keys, monkeypatch, tmp_path, capfd) -> None:
    assert signing.verify(signed, keys["mine.pub"]) == CERTIFICATE
    job = ("+verify=export", f"verify.dir={signed}", f"verify.key={keys['mine.pub']}")
    assert ptsearch(monkeypatch, tmp_path, *job) == 0
    assert FORMAT in capfd.readouterr().out


@pytest.mark.parametrize("name", ["certificate.json", "ensemble.yaml", "files.json", "README.md"])
def test_one_byte_is_said_with_its_file(name: str, signed, keys) -> None:
    text = bytearray((signed / name).read_bytes())
    text[len(text) // 2] ^= 1
    (signed / name).write_bytes(text)
    with pytest.raises(ValueError, match=f"not what was signed: .*{name}"):
        signing.verify(signed, keys["mine.pub"])


def test_a_weight_a_new_file_and_a_missing_one(signed, keys) -> None:
    weights = next((signed / "members").glob("*/*.safetensors"))
    before = weights.read_bytes()
    weights.unlink()  # a hard link of the cache's
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    with pytest.raises(ValueError, match=weights.name):
        signing.verify(signed, keys["mine.pub"])
    weights.write_bytes(before)
    (signed / "more.txt").write_text("more")
    with pytest.raises(ValueError, match=r"more\.txt"):
        signing.verify(signed, keys["mine.pub"])
    (signed / "more.txt").unlink()
    (signed / SIGNATURE).unlink()
    with pytest.raises(ValueError, match="is not signed"):
        signing.verify(signed, keys["mine.pub"])


def test_another_key_and_one_of_another_kind(signed, keys) -> None:
    with pytest.raises(ValueError, match="Key mismatch"):
        signing.verify(signed, keys["other.pub"])
    for key in ("rsa.pub", "mine"):
        with pytest.raises(ValueError, match="no public key of an elliptic curve"):
            signing.verify(signed, keys[key])
    for key in ("rsa", "mine.pub"):
        with pytest.raises(ValueError, match="no private key of an elliptic curve"):
            signing.signer(keys[key])
    with pytest.raises(ValueError, match=r"verify\.key=nowhere is not a file"):
        signing.verify(signed, Path("nowhere"))


def test_a_schema_of_a_future_version_and_a_field_of_another_type(tmp_path) -> None:
    path = tmp_path / "certificate.json"
    fields = asdict(CERTIFICATE)
    path.write_text(json.dumps(fields | {"format": "ptsearch-certificate/2"}))
    with pytest.raises(ValueError, match="format 'ptsearch-certificate/2', this version reads"):
        signing.read_certificate(path)
    path.write_text(json.dumps(fields | {"holdout_reads": "many"}))
    with pytest.raises(ValueError, match="holdout_reads: Input should be a valid integer"):
        signing.read_certificate(path)
    path.write_text(json.dumps(fields))
    assert signing.read_certificate(path) == CERTIFICATE


def test_the_published_schema_is_that_of_the_records() -> None:
    """Else write `signing.schema()` there, and `certificate.FORMAT` anew if old readers fail."""
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == signing.schema()


def test_the_model_card_has_the_verdict_for_the_hub(study, cache, tmp_path) -> None:
    folder = write(study, cache, tmp_path / "out").folder
    found = ModelCard.load(folder / "README.md").data.eval_results
    assert found[-1].metric_type == "verdict"
    assert found[-1].metric_value
    assert {each.metric_type for each in found} >= {"trust"}
