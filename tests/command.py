"""The command line, run in this process."""

import sys
from pathlib import Path

import pytest

from ptsearch import cli


def ptsearch(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    """Exit status of the command in `folder`; without a worker, which takes seconds to start."""
    monkeypatch.chdir(folder)
    here = [] if any("compute" in override for override in overrides) else ["compute.workers=0"]
    monkeypatch.setattr(sys, "argv", ["ptsearch", *here, *overrides])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
