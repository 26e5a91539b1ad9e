"""The page of a study: what it embeds, and every control of it in a browser without a network.

Browser tests take Debian's chromium and `pip install ptsearch[test]`; the one of accessibility also
the file `axe.min.js` of npm's axe-core, which the environment variable AXE names.
"""

import base64
import gzip
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes import fake_table, search_and_holdout
from test_conf import composed

from ptsearch.config import Config
from ptsearch.evaluation import predictions
from ptsearch.evaluation.table import Table
from ptsearch.report import page, samples
from ptsearch.report import study as report
from ptsearch.report.study import Result
from ptsearch.search import exact_front, limits, trials
from ptsearch.search import study as studies
from ptsearch.search.exact_front import enumerate_scores
from ptsearch.search.fronts import Front
from ptsearch.search.scorer import scorers
from ptsearch.variant import short_labels

CHROMIUM = shutil.which("chromium")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
         "--disable-component-update", "--disable-sync")  # fmt: skip
HOSTILE = "</script><img src=x onerror=alert(1)><!-- <b>bold</b> {{ 7 * 7 }} & \u2028"


def hostile_table(folder: Path) -> Table:
    """Prompts, labels, replies and the study's name are full of markup."""
    table = fake_table(folder, trials=8, samples=120, name=f"study {HOSTILE}")
    ethics = next(b for b in table.benchmarks if b.name == "ethics")
    bad = tuple(replace(s, prompt=f"{HOSTILE} {s.prompt}") for s in ethics.samples)
    table.benchmarks = [replace(b, samples=bad) if b is ethics else b for b in table.benchmarks]
    answers = pa.Table.from_pylist(
        [
            {"benchmark": "ethics", "sample": s.id, "reply": f"{HOSTILE} says {s.id}"}
            for s in ethics.samples
        ],
        schema=predictions.SCHEMA,
    )
    replies = folder / "replies" / "answers.parquet"
    predictions.write(answers, replies, {})
    table.outputs = lambda label: {  # type: ignore[method-assign]
        b.name: replies if b.name == "ethics" else folder / "none" for b in table.benchmarks
    }
    return table


def result_of(table: Table) -> Result:
    study, parts = studies.unsaved(table.config.study), scorers(table)
    run = trials.Search(study, table, parts["search"], lambda *_: "r0")
    trials.search(run)
    exact = exact_front.complete(run)
    return report.compile_result(table, [], study, parts, Front(exact, studies.front(study)))


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return hostile_table(tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def result(table: Table) -> Result:
    return result_of(table)


@pytest.fixture(scope="module")
def made(table: Table, result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    page.write(table, result, folder)
    return folder / page.PAGE


def embedded(made: Path, name: str) -> str:
    found = re.search(rf'<script type="[a-z/]+" id="{name}">(.*?)</script>', made.read_text(), re.S)
    assert found
    return found[1]


def unpacked(made: Path, name: str) -> bytes:
    return gzip.decompress(base64.b64decode(embedded(made, name)))


def test_one_file_of_moderate_size_that_names_nothing_elsewhere(made: Path) -> None:
    assert made.stat().st_size < 5e6
    html = made.read_text()
    assert not re.search(r'(?:src|href)="(?!#|data:,")', html)
    assert "url(" not in html


def test_markup_in_prompts_replies_and_names_is_text(made: Path) -> None:
    html = made.read_text()
    assert "<img" not in html
    assert "<!--" not in html
    assert "&lt;/script&gt;&lt;img" in html
    rows = json.loads(unpacked(made, "embedded"))
    assert any(HOSTILE in prompt for prompt in rows["prompt"])
    assert any(HOSTILE in (reply or "") for reply in rows["reply.none"])


def test_every_ensemble_is_embedded_with_all_its_scores(made: Path, table: Table) -> None:
    every = enumerate_scores(table, search_and_holdout(table)[0])
    masks = np.frombuffer(unpacked(made, "masks"), "<u4")
    assert masks.tolist() == every.masks.tolist()
    keys = [score["key"] for score in json.loads(embedded(made, "data"))["scores"]]
    columns = np.frombuffer(unpacked(made, "columns"), "<f4").reshape(len(keys), -1)
    assert {"trust", "fairness", "mmlu", "refusal_rate", "memory_gb", "latency_ms"} <= set(keys)
    for key, column in zip(keys, columns, strict=True):
        np.testing.assert_allclose(column, every.scores[key], rtol=1e-6)


def test_of_too_many_ensembles_the_small_ones_are_embedded(table: Table, monkeypatch) -> None:
    monkeypatch.setattr(page, "MOST_ENSEMBLES", 20)
    every, said = page._everything(table, search_and_holdout(table)[0])
    assert every is not None
    assert np.bitwise_count(every.masks).tolist() == [1] * 5 + [2] * 10 + [3] * 5
    assert "20 with the fewest members of 31 ensembles" in said


def test_the_parquet_file_has_all_samples_with_the_votes(made: Path, table: Table) -> None:
    frame = pq.read_table(made.parent / page.SAMPLES)
    parts = scorers(table)
    assert frame.num_rows == sum(len(b.samples) for b in table.benchmarks)
    assert [h == "held out" for h in frame["half"].to_pylist()] == parts["holdout"].mask.tolist()
    wrong = np.array(frame["answer.none"]) != np.array(frame["gold"])
    asked = parts["all"].asked
    np.testing.assert_array_equal(wrong, table.entries["none"].codes != asked.gold)
    assert any(name.startswith("vote.") for name in frame.column_names)


def test_the_samples_where_a_vote_differs_come_first(table: Table, monkeypatch) -> None:
    monkeypatch.setattr(samples, "MOST", 30)
    found = samples.answered(table, scorers(table), {"pair": ("v0-3b", "v2-4b", "v4-8b")})
    rows = samples.embedded(found)
    assert len(rows["sample"]) == 30
    assert all(v != d for v, d in zip(rows["vote.pair"], rows["answer.none"], strict=True))


def test_losses_come_first(made: Path, result: Result) -> None:
    row = next(row for row in result.front if row.gains)
    compared = page._losses_first(row.gains["dense"])
    claims = [claim for _, _, claim in compared]
    assert claims == sorted(claims, key=page.ORDER.index)
    gained = [gain.estimate for _, gain, claim in compared if claim == claims[0]]
    assert gained == sorted(gained)


def test_an_interval_of_a_score_is_about_that_of_a_share(table: Table, result: Result) -> None:
    """Accuracy over n samples: between one and three times the interval that holds alone."""
    _, holdout = search_and_holdout(table)
    dense = result.compared[0]
    margin = page._margins(table, holdout, [dense])[dense.members]["mmlu"]
    share, n = dense.holdout["mmlu"] / 100, int(holdout.asked.scored()["mmlu"].size)
    alone = 196 * (share * (1 - share) / n) ** 0.5
    assert alone < margin < 3 * alone


def test_the_command_keeps_what_decides_the_answers() -> None:
    given = ["+study=pareto", "model=path", "model.path=a b", "study.trials=5",
             "study.max_members=3", "study.name=x", "+study.min.bbq=50", "runs_dir=r"]  # fmt: skip
    config = Config(study=studies.StudyConfig(name="x"), overrides=given)
    assert page._command(config, "+study=slo") == (
        "python -m ptsearch +study=slo model=path 'model.path=a b' study.max_members=3 runs_dir=r "
        "study.name=x"
    )
    assert page._command(config, "+export=ensemble").endswith(
        "runs_dir=r export.study=x export.out=chosen"
    )


def test_the_command_composes_with_a_limit_on_anything(result: Result) -> None:
    found = result.compared[0].search | {"bbq": 1.0, "bbq.refusal_rate": 0.0}
    limits = [f"{score.limit}=50" for score in page._scores(studies.StudyConfig(), found)]
    assert "++study.min.bbq=50" in limits
    assert limits.count("study.max.memory_gb=50") == 1
    given = ["+study=pareto", "model=path", "model.path=x", "+study.min.bbq=1"]
    config = Config(study=studies.StudyConfig(), overrides=given)
    search, export = (page._command(config, job) for job in ("+study=slo", "+export=ensemble"))
    study = composed(*shlex.split(search)[3:], *limits).study
    assert study.name == "pareto"
    assert (study.min["bbq"], study.max["memory_gb"]) == (50, 50)
    assert {*study.min} - {"bbq"} == set(page.LIMITED)
    assert composed(*shlex.split(export)[3:]).export.study == "pareto"


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if not CHROMIUM:
        pytest.skip("no chromium on the path")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


class Opened:
    """The page in a browser, with whatever it complains of or asks the network for."""

    def __init__(self, browser: Any, made: Path, **how: Any) -> None:
        self.context = browser.new_context(**how)
        self.page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("console", lambda m: self.problems.append(m.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append("a dialog"))
        self.page.on("request", lambda asked: self.problems.append(asked.url))
        self.page.goto(made.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        assert self.problems.pop(0) == made.as_uri()

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()


@pytest.mark.parametrize("width", [360, 1920])
def test_every_control_works(browser: Any, made: Path, table: Table, width: int) -> None:
    opened = Opened(browser, made, viewport={"width": width, "height": 900})
    tab = opened.page
    scores = json.loads(embedded(made, "data"))["scores"]
    for key in (score["key"] for score in scores):
        tab.select_option("#across", key)
        tab.select_option("#up", key)
    tab.select_option("#across", "memory_gb")
    tab.select_option("#up", "trust")
    for shown in ("front", "none", "picks"):
        tab.select_option("#intervals", shown)
    assert tab.locator("#front-plot .scatterlayer .trace").count() > 4

    every = enumerate_scores(table, search_and_holdout(table)[0])
    for score in scores:
        values = every.scores[score["key"]]
        middle = f"{np.median(values):.{score['digits']}f}"
        tab.fill(f"#number-{score['key']}", middle)
        kept = values >= float(middle) if score["higher"] else values <= float(middle)
        tab.wait_for_function(f"document.getElementById('left').textContent === '{kept.sum()}'")
        assert f"{score['limit']}={float(middle):g}" in opened.text("#command")
        tab.focus(f"#range-{score['key']}")
        tab.keyboard.press("Home" if score["higher"] else "End")
        tab.wait_for_function("document.getElementById('left').textContent === '31'")
    tab.fill("#number-memory_gb", "0.2")
    settings = replace(table.config.study, max={"memory_gb": 0.2})
    pick = limits.answer(every, settings).pick
    names = short_labels(table.variants)
    best = "#best tbody tr:first-child th"
    tab.wait_for_function("document.getElementById('left').textContent !== '31'")
    assert opened.text(best) == " + ".join(names[label] for label in pick or ())
    tab.click("#copy")
    tab.wait_for_function("document.getElementById('copied').textContent !== ''")
    tab.fill("#number-memory_gb", "0.0001")
    tab.wait_for_function("document.getElementById('copy').disabled")
    tab.click("#reset")
    tab.wait_for_function("document.getElementById('left').textContent === '31'")

    for option in tab.locator("#benchmark option").all():
        tab.select_option("#benchmark", option.get_attribute("value"))
    assert tab.locator("#heat .heatmaplayer").count() == 1
    tab.click("#regret summary")
    tab.wait_for_selector("#regret-plot .scatterlayer")

    tab.select_option("#which", "all")
    whole = sum(len(b.samples) for b in table.benchmarks)
    assert opened.text("#found").startswith(f"{whole} of")
    tab.click("#next")
    tab.click("#previous")
    tab.fill("#words", "onerror")
    tab.wait_for_function(f"!document.getElementById('found').textContent.startsWith('{whole}')")
    tab.select_option("#of", "ethics")
    tab.locator("#rows summary").first.click()
    assert HOSTILE.split("\u2028")[0] in tab.locator("#rows .prompt").first.inner_text()
    assert "says" in tab.locator("#rows li q").first.inner_text()
    for which in ("lost", "won", "differ"):
        tab.select_option("#which", which)
    tab.select_option("#voter", index=0)

    term = tab.locator(".lead .term a").first
    term.focus()
    assert tab.locator("#tip").is_visible()
    tab.keyboard.press("Escape")
    assert tab.locator("#tip").is_hidden()
    term.hover()
    assert tab.locator("#tip").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth") == width
    assert tab.locator("img").count() == 0
    assert opened.problems == []
    opened.context.close()


@pytest.mark.parametrize("kind", ["blob", "srcdoc"])
def test_works_in_the_closed_frame_of_another_page(browser: Any, made: Path, kind: str) -> None:
    """As MLflow shows an artifact: the browser follows no link and gives no clipboard."""
    tab = browser.new_page()
    tab.evaluate(
        """([html, kind]) => {
          const frame = document.createElement("iframe");
          frame.sandbox = "allow-scripts";
          if (kind === "srcdoc") frame.srcdoc = html;
          else frame.src = URL.createObjectURL(new Blob([html], { type: "text/html" }));
          document.body.append(frame);
        }""",
        [made.read_text(), kind],
    )
    frame = tab.frame_locator("iframe")
    frame.locator("html[data-ready]").wait_for()
    frame.locator("nav a[href='#glossary']").click()
    assert frame.locator("#glossary").evaluate("(e) => document.activeElement === e")
    frame.locator("#copy").click()
    frame.locator("#copied", has_text="Ctrl+C").wait_for()
    tab.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_for_a_screen_reader(browser: Any, made: Path, scheme: str) -> None:
    axe = os.environ.get("AXE")
    if not axe:
        pytest.skip("AXE does not name axe.min.js (npm install axe-core)")
    opened = Opened(browser, made, color_scheme=scheme)
    opened.page.locator("details").evaluate_all("all => all.forEach((each) => (each.open = true))")
    opened.page.add_script_tag(path=axe)
    found = opened.page.evaluate("axe.run()")["violations"]
    grave = [each for each in found if each["impact"] in ("serious", "critical")]
    assert {each["id"]: [node["html"] for node in each["nodes"]] for each in grave} == {}
    opened.context.close()


def test_prints_on_two_sheets_in_light_colours(browser: Any, made: Path) -> None:
    opened = Opened(browser, made, color_scheme="dark")
    sheets = opened.page.pdf(prefer_css_page_size=True)
    assert 1 <= len(re.findall(rb"/Type /Page\b(?!s)", sheets)) <= 2
    opened.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    text = opened.page.evaluate(
        "getComputedStyle(document.documentElement).getPropertyValue('--page')"
    )
    assert text.strip() == "#fbfcfb"
    opened.context.close()
