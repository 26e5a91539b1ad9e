"""A tiny pool that is exported, and what writes it."""

from dataclasses import replace
from pathlib import Path

from ptsearch import store
from ptsearch.config import ExportConfig
from ptsearch.deploy import export
from ptsearch.deploy import folder as exported
from ptsearch.variant import Variant

DENSE = Variant("tiny", "0")
WAYS = ("sequential", "parallel", "lazy")
POOL = [replace(DENSE, method="rtn", bits=bits, group_size=32) for bits in (3, 4, 8)]


def write(study, cache: Path, out: Path, target: str = "local") -> exported.Exported:
    folder = export.write(study, ExportConfig(study="s", out=str(out), target=target), cache)
    assert store.verify_folder(folder) == []
    return exported.open_folder(folder)
