"""Every script under examples/ runs and is short."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from members import folder  # noqa: F401 - a fixture
from serving import live

from ptsearch.config import ServeConfig

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_scripts_are_short_and_all_run_here() -> None:
    assert [path.stem for path in SCRIPTS] == ["answer", "client", "plot_front", "quantize", "vote"]
    for path in SCRIPTS:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 40, path.name


def test_vote() -> None:
    assert example("vote").main() == ["positive", "positive", "positive", "negative"]


def test_plot_front(tmp_path: Path) -> None:
    front = ROOT / "experiments" / "2026-11-25-wide" / "pocket" / "front.csv"
    example("plot_front").main(front, tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000


def test_quantize(tiny_model: Path, tmp_path: Path) -> None:
    perplexities = example("quantize").main(tiny_model, tmp_path, samples=4, length=64)
    assert list(perplexities) == [f"gptq-{bits}b-g32-asym-act-s0" for bits in (3, 4, 8)]
    assert all(perplexities.values())


def test_answer(folder: Path) -> None:
    lines = example("answer").main(folder)
    assert len(lines) == 2
    assert "high: " in lines[0]


def test_client(folder: Path) -> None:
    pytest.importorskip("openai")
    with live(ServeConfig(dir=str(folder), port=0)) as url:
        label, members = example("client").main(url, folder.name)
    assert label in ("yes", "no")
    assert [member["member"] for member in members] == ["high", "middle", "low"]
