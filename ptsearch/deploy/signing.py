"""Signatures of exported folders by OpenSSF's model-signing, and what a checked certificate says.

The signature covers every file of the folder, `certificate.json` and `files.json` among them.
"""

import re
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ptsearch import store
from ptsearch.deploy import folder as exported
from ptsearch.deploy.folder import SIGNATURE
from ptsearch.report import certificate
from ptsearch.report.certificate import Certificate

CERTIFICATE = "certificate.json"
COMMANDS = (
    "openssl ecparam -name prime256v1 -genkey -noout -out KEY; openssl ec -in KEY -pubout -out PUB"
)


def signer(key: Path) -> Any:
    """What signs with a private key, an elliptic curve in PEM. ImportError, ValueError: no key."""
    api = _library("signing")
    try:
        return api.Config().use_elliptic_key_signer(private_key=_key(key, "export.sign"))
    except Exception as error:
        raise _wrong_key(key, "private", error) from error


def sign(folder: Path, signs: Any) -> Path:
    """Write the signature of an exported folder beside its files; `signs`: see `signer`."""
    ignored = _library("hashing").Config().set_ignored_paths(paths=[SIGNATURE])
    signs.set_hashing_config(ignored).sign(folder, folder / SIGNATURE)
    return folder / SIGNATURE


def verify(folder: Path, key: Path) -> Certificate:
    """The certificate of a folder that is as it was when it was signed with the key's other half.

    ValueError: the first thing that differs: no signature, another key, a file, the schema.
    """
    if not (folder / SIGNATURE).is_file():
        raise ValueError(f"{folder} is not signed: {SIGNATURE} is missing (export.sign=KEY)")
    api = _library("verifying")
    try:
        checks = api.Config().use_elliptic_key_verifier(public_key=_key(key, "verify.key"))
    except Exception as error:
        raise _wrong_key(key, "public", error) from error
    try:
        checks.verify(folder, folder / SIGNATURE)
    except Exception as error:
        raise ValueError(f"{folder}: {_first(str(error) or type(error).__name__)}") from error
    exported.open_folder(folder)
    return read_certificate(folder / CERTIFICATE)


def read_certificate(path: Path) -> Certificate:
    """ValueError: of another version, or a field is missing, unknown or of another type."""
    fields = store.read_json(path)
    if (written := fields.get("format")) != certificate.FORMAT:
        raise ValueError(
            f"{path} has format {str(written)[:99]!r}, this version reads {certificate.FORMAT}: "
            "verify it with the ptsearch that wrote it, or a newer one"
        )
    try:
        return TypeAdapter(Certificate).validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"{path}: {place}: {first['msg']}") from None


def schema() -> dict[str, Any]:
    """The JSON Schema of `certificate.json`, as it is published under docs/."""
    return TypeAdapter(Certificate).json_schema() | {"$id": certificate.FORMAT}


def _first(said: str) -> str:
    """The first difference of the library's list, in its words without the digests."""
    listed = re.search(r"Signature mismatch: \[(['\"])(.*?)(?:: Expected |\1[,\]])", said)
    return (
        f"not what was signed: {listed[2]}" if listed else f"the signature is wrong: {said[:200]}"
    )


def _key(path: Path, name: str) -> Path:
    if not path.is_file():
        raise ValueError(f"{name}={path} is not a file")
    return path


def _wrong_key(path: Path, half: str, error: Exception) -> ValueError:
    if not path.is_file():
        return ValueError(str(error))
    return ValueError(
        f"{path} is no {half} key of an elliptic curve in PEM (P-256, P-384 or P-521): "
        f"{str(error).splitlines()[0][:120] if str(error) else type(error).__name__}\n{COMMANDS}"
    )


def _library(name: str) -> ModuleType:
    try:
        return import_module(f"model_signing.{name}")
    except ImportError as error:
        raise ImportError("signatures need model-signing: pip install 'ptsearch[sign]'") from error
