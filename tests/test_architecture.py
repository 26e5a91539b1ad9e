"""Who may import whom: what is cheap never pulls in what is costly."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "ptsearch"
ANY = {"*"}
CHEAP = {"rules", "voting", "metrics", "config", "variant", "scores", "predictions"}
# module (or package) -> modules of ptsearch it may import
MAY_IMPORT = {
    "variant": set(),
    "rules": set(),
    "voting": {"rules"},
    "lazy": {"voting"},
    "metrics": {"rules"},
    "statistics": set(),
    "rates": {"scores", "statistics", "voting"},
    "exact": {"lazy", "rates", "scores", "voting"},
    "published": {"metrics", "rules"},
    "checks": set(),
    "config_serve": {"checks"},
    "config": {"checks", "config_serve", "variant"},
    "predictions": {"variant"},
    "store": {"variant"},
    "compute": set(),
    "codes": set(),
    "stored": {"codes"},
    "benchmarks": {"rules", "benchmarks", "config"},
    "scores": {"benchmarks", "metrics", "published", "rules", "voting"},
    "models": {"benchmarks", "codes", "config", "store", "stored", "variant"},
    "fetch": {"config", "models", "store"},
    "calibration": {"benchmarks", "config"},
    "quantize": {"codes", "quantize", "variant", "models", "store", "calibration", "config"}
    | {"stored"},
    "build": {"calibration", "engine", "models", "onepass", "quantize", "readback", "resume"}
    | {"store", "stored", "variant"},
    "resume": {"quantize", "readback", "store", "variant"},
    "onepass": {"calibration", "codes", "models", "quantize", "readback", "resume", "store"}
    | {"stored", "variant"},
    "readback": {"calibration", "engine", "models", "quantize", "store", "stored", "variant"},
    "engine": {"engine", "models", "config", "quantize", "variant"},
    "extract": {"checks", "benchmarks", "config", "engine", "models", "rules"},
    "evaluate": {"benchmarks", "config", "engine", "models", "predictions"},
    "table": CHEAP | {"benchmarks", "build", "calibration", "compute", "evaluate", "extract"}
    | {"models", "fetch", "store"},
    "judge": CHEAP | {"ballot", "lazy", "table"},
    "sampler": set(),
    "study": CHEAP | {"judge", "sampler", "table"},
    "proposal": {"config", "exact", "judge", "study", "table", "variant", "voting"},
    "results": CHEAP | {"ballot", "gains", "judge", "study", "table"},
    "recheck": CHEAP | {"cascade", "judge", "results", "table"},
    "gains": {"config", "judge", "rates", "scores", "statistics", "study", "table", "voting"},
    "racing": {"config", "exact", "judge", "rates", "rules", "study", "table", "voting"},
    "certificate": CHEAP | {"benchmarks", "gains", "judge", "results", "study", "table"},
    "truth": {"config", "exact", "judge", "scores", "study", "table"},
    "figure": {"results", "scores"},
    "terminal": {"compute", "results", "scenarios"},
    "bars": set(),
    "heatmap": set(),
    "xray": {"metrics", "rules", "scores", "variant", "voting"},
    "ledger": CHEAP | {"gains", "judge", "study", "table"},
    "ballot": {"config", "metrics", "scores", "voting"},
    "vote_report": CHEAP | {"gains", "judge", "study", "table"},
    "explain": CHEAP | {"figure", "heatmap", "judge", "ledger", "results", "study"}
    | {"table", "vote_report", "xray"},
    "scenarios": {"judge", "results", "scores"},
    "experiments": CHEAP | {"gains", "judge", "results", "scenarios", "study", "table"},
    "tracking": set(),
    "rescore": {"benchmarks", "metrics", "published", "rules"},
    "query": {"rules"},
    "exported": {"query", "store"},
    "ensemble": {"config", "engine", "exported", "models", "query", "rules", "voting"},
    "cascade": {"judge", "predictions", "rules", "scores", "table"},
    "logged": {"benchmarks", "predictions", "query", "rules", "table", "voting"},
    "forms": {"config", "variant"},
    "deploy": {"config"},
    "export": {"certificate", "config", "deploy", "exported", "forms", "models", "results", "store"}
    | {"logged", "variant"},
    "slo": CHEAP | {"study", "truth"},
    "slo_report": ANY,
    "report": ANY,
    "experiment_report": ANY,
    "jobs": ANY,
    "serve": {"checks", "config", "config_serve", "engine", "ensemble", "exported", "models"}
    | {"query", "rules", "serve", "voting"},
    "cli": {"compute", "config", "jobs", "serve"},
    "__main__": {"cli"},
    "__init__": set(),
}  # fmt: skip
ONLY_IN = {
    "mlflow": {"tracking"},
    "optuna": {"sampler", "study", "report", "jobs"},
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "httpx": {"benchmarks", "engine", "extract"},
    "starlette": {"serve"},
    "uvicorn": {"serve"},
    "aiohttp": {"serve"},
    "prometheus_client": {"serve"},
    "rich": {"terminal", "report", "experiment_report", "slo_report"},
    "torch": {
        "codes",
        "stored",
        "models",
        "fetch",
        "calibration",
        "quantize",
        "build",
        "readback",
        "engine",
    }
    | {"compute", "onepass", "resume"},
    "transformers": {"models", "fetch", "quantize", "build", "engine"},
}


def module_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = node.module == "ptsearch"
            found |= {f"ptsearch.{a.name}" for a in node.names} if inside else {node.module}
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_table(path: Path) -> None:
    module = module_of(path)
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("ptsearch.")}
    allowed = MAY_IMPORT[module]
    assert allowed == ANY or ours <= allowed, f"{module} must not import {ours - allowed}"
    for outside, modules in ONLY_IN.items():
        used = any(name.split(".")[0] == outside for name in imports(path))
        assert not used or module in modules, f"{module} must not import {outside}"


def test_files_stay_short() -> None:
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in FILES}
    assert FILES
    assert {name: lines for name, lines in lengths.items() if lines > 400} == {}
