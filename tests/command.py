"""The command line, run in this process."""

import sys
from pathlib import Path

import pytest

from ptsearch import cli


def ptsearch(monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> int:
    """Exit status of the command in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["ptsearch", *overrides])
    try:
        cli.main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
