"""The scripts of measurements, which no other test runs, call what the package has."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
GONE = ("[attr-defined]", "[call-arg]", "[name-defined]")  # kinds of errors; types may be loose


def test_what_experiments_call_exists() -> None:
    command = [sys.executable, "-m", "mypy", "experiments"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "checked" in done.stdout, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.endswith(GONE)] == []
