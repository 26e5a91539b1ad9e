"""How long the page of a large study takes to write and to load, on made-up answers.

    python experiments/page_load.py --variants 16 --samples 40000

All ensembles of the variants (65,535 of 16), prompts of 1,500 characters, replies of 60. `ready_s`
is what the page measures itself, from the start of its navigation until every figure is drawn,
median of `--loads`; `cpu_s` are the processor seconds of all of Chromium's processes in a load.
Takes Debian's chromium and playwright.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
import pyarrow as pa
from fakes import fake_table
from playwright.sync_api import sync_playwright

from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import Table
from ptsearch.report import page
from ptsearch.report import study as report
from ptsearch.search import exact_front, trials
from ptsearch.search import study as studies
from ptsearch.search.fronts import Front
from ptsearch.search.scorer import scorers

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync")  # fmt: skip
LETTERS = np.array(list("etaoinshrdlu   "))


def large_table(folder: Path, variants: int, samples: int) -> Table:
    """Six scenarios of five benchmarks, with prompts and generated replies of random letters."""
    rng = np.random.default_rng(0)
    bits = tuple(3 + i % 6 for i in range(variants))
    table = fake_table(folder, bits, samples // 6, max_members=variants, trials=200)

    def text(length: int) -> str:
        return "".join(rng.choice(LETTERS, length))

    demonstrations = text(1400)
    outputs: dict[str, Path] = {}
    benchmarks = []
    for benchmark in table.benchmarks:
        prompts = [f"{demonstrations}{text(100)} {s.prompt}" for s in benchmark.samples]
        pairs = zip(benchmark.samples, prompts, strict=True)
        asked = tuple(replace(sample, prompt=prompt) for sample, prompt in pairs)
        benchmarks.append(replace(benchmark, samples=asked))
        rows = [{"sample": sample.id, "reply": text(60)} for sample in asked]
        outputs[benchmark.name] = folder / benchmark.name / "answers.parquet"
        answers = pa.Table.from_pylist(rows, schema=predictions.SCHEMA)
        predictions.write(answers, outputs[benchmark.name], {})
    table.benchmarks = benchmarks
    table.outputs = lambda label: outputs  # type: ignore[method-assign]
    return table


def write_page(table: Table, folder: Path) -> dict[str, object]:
    parts, study = scorers(table), studies.unsaved(studies.study_config(table.config))
    run = trials.Search(study, table, parts["search"], lambda *_: "r0")
    trials.search(run)
    exact = exact_front.complete(run)
    result = report.compile_result(table, [], study, parts, Front(exact, studies.front(study)))
    started = time.perf_counter()
    page.write(table, result, folder)
    return {
        "ensembles": exact.ensembles,
        "front": len(result.front),
        "write_s": round(time.perf_counter() - started, 1),
        "page_mb": round((folder / page.PAGE).stat().st_size / 1e6, 2),
        "samples_mb": round((folder / page.SAMPLES).stat().st_size / 1e6, 2),
    }


def load(path: Path, loads: int) -> dict[str, object]:
    ready, cpu = [], []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
        for _ in range(loads):
            before = chromium_seconds()
            tab = browser.new_page(viewport={"width": 1920, "height": 1000})
            tab.goto(path.as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            ready.append(int(tab.evaluate("document.documentElement.dataset.ready")) / 1000)
            marks = "performance.getEntriesByType('mark').map((m) => [m.name, m.startTime / 1000])"
            stages = {name: round(second, 2) for name, second in tab.evaluate(marks)}
            cpu.append(chromium_seconds() - before)
            tab.close()
        browser.close()
    return {"ready_s": statistics.median(ready), "least_s": min(ready), "stages_s": stages,
            "cpu_s": round(statistics.median(cpu), 2)}  # fmt: skip


def chromium_seconds() -> float:
    """Processor seconds so far of all processes of chromium."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
            ticks += sum(map(int, rest.split()[11:13])) if name == "chromium" else 0
    return ticks / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variants", type=int, default=16)
    parser.add_argument("--samples", type=int, default=40_000)
    parser.add_argument("--loads", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = write_page(large_table(folder, given.variants, given.samples), folder / "page")
        figures = made | load(folder / "page" / page.PAGE, given.loads)
        sys.stdout.write(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
