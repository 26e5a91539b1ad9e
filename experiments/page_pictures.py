"""The pictures of a study's page that the documents show.

    python experiments/page_pictures.py docs/assets
    python experiments/page_pictures.py docs/assets --page mlruns/reports/NAME/report.html

Without a page, that of the recorded study in `tests/golden`: nine variants of the embedded model
and all their ensembles, on the questions of the embedded benchmark's version 1. Takes Debian's
chromium and playwright.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import test_golden
from page_load import FLAGS, write_page
from PIL import Image
from playwright.sync_api import sync_playwright

from ptsearch.evaluation.table import Table
from ptsearch.report import page

SHOTS = (  # file, width, height, colours
    ("page.png", 1280, 1560, "light"),
    ("page-narrow.png", 360, 1100, "dark"),
)
COLOURS = 96  # of a picture: keeps it below 150 kB


def golden_table(folder: Path) -> Table:
    recorded = json.loads((test_golden.GOLDEN / "study.json").read_text(encoding="utf-8"))

    class Folders:
        def mktemp(self, _name: str) -> Path:
            return folder

    table: Table = test_golden.table.__wrapped__(recorded, Folders())
    table.config.study.name = "nine-variants"
    table.copies = lambda labels: {}  # type: ignore[method-assign]  # nothing is built
    table.changes = lambda label: {}  # type: ignore[method-assign]
    return table


def shoot(path: Path, folder: Path) -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path="/usr/bin/chromium", args=list(FLAGS))
        for name, width, height, colours in SHOTS:
            size = {"width": width, "height": height}
            tab = browser.new_page(viewport=size, color_scheme=colours)
            tab.goto(path.resolve().as_uri())
            tab.wait_for_selector("html[data-ready]", timeout=120_000)
            tab.screenshot(path=folder / name)
            with Image.open(folder / name) as picture:
                few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(folder / name, optimize=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if given.page is None:
            write_page(golden_table(Path(scratch)), Path(scratch))
        shoot(given.page or Path(scratch, page.PAGE), given.folder)


if __name__ == "__main__":
    main()
