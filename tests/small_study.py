"""Settings of a study that takes seconds."""

from pathlib import Path

SMALL = (
    "calibration.samples=4",
    "calibration.length=64",
    "benchmarks.limit=10",
    "latency.prompts=4",
)
STUDY = (*SMALL, "study.need_skill=false")  # tiny random models have none


def files_under(folder: Path) -> dict[str, float]:
    return {str(p.relative_to(folder)): p.stat().st_mtime for p in folder.rglob("*") if p.is_file()}
