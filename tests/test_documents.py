"""The documents are true: commands compose, links resolve, the drawing is that of the imports."""

import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from test_architecture import MAY_IMPORT
from test_conf import composed

from ptsearch.evaluation import reference

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(?P<kind>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://|#)(?P<target>[^)#\s]+)")
README_LINES = 150


def commands() -> list[str]:
    """Every `python -m ptsearch ...` of a code block, the README's and the pages'."""
    lines = [
        line
        for page in PAGES
        for block in BLOCK.finditer(page.read_text(encoding="utf-8"))
        for line in block["text"].replace("\\\n", " ").splitlines()
    ]
    return sorted({line for line in lines if line.startswith("python -m ptsearch")})


def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", commands())
def test_a_command_composes(command: str) -> None:
    overrides = shlex.split(command, comments=True)[3:]
    if "--config-dir" in overrides:  # a folder of the reader's own, which has a model
        place = overrides.index("--config-dir")
        del overrides[place : place + 2]
        overrides = [o for o in overrides if o != "model=mine"]
    composed(*overrides)


def test_there_are_commands() -> None:
    assert len(commands()) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    missing = [t for t in LINK.findall(text) if not (page.parent / t).exists()]
    assert missing == []


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


def test_the_drawing_of_the_wings_is_true() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    arrows = hooks().arrows(page)

    def below(wing: str) -> set[str]:
        return set().union(*({end} | below(end) for end in arrows.get(wing, [])))

    assert set(arrows) <= set(MAY_IMPORT)
    for wing, allowed in MAY_IMPORT.items():
        assert set(arrows.get(wing, [])) <= allowed <= below(wing), wing


def test_files_named_by_the_documents_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`(ptsearch/[\w/.]+\.py)`", page.read_text(encoding="utf-8")):
            generic = path.replace("NAME", "__init__")
            assert (ROOT / generic).is_file(), f"{page.name}: {path}"


def test_the_configuration_reference_has_every_key() -> None:
    page = hooks().reference()
    for key in ("study.trials", "benchmarks.limit", "pool.group_size", "serve.port", "runs_dir"):
        assert f"| `{key}` |" in page
    assert '??? note "pool=wide"' in page


def test_every_key_has_a_comment_and_every_choice_a_first_line() -> None:
    keys = [*reference.keys(), *(key for g in reference.groups() for key in reference.keys(g))]
    assert len(keys) > 100
    assert [key.name for key in keys if not key.comment] == []
    for group in (*reference.groups(), "published"):
        assert all(map(str.strip, reference.choices(group).values()))


def test_a_comment_belongs_to_the_key_that_it_is_written_to() -> None:
    comments = {key.name: key.comment for g in reference.groups() for key in reference.keys(g)}
    assert comments["calibration.revision"] == "hub: a commit"
    assert comments["calibration.rendering"].startswith("raw: as it is | chat: conversations")
    assert "vote.order in ensemble.yaml" in comments["serve.engines"]
    assert comments["study.min_skill"].startswith("require | flag: ")


def test_help_explains_jobs_choices_and_keys() -> None:
    said = reference.help_text()
    assert "+study=pareto" in said and "pool=wide: Twenty members" in said
    assert "+study=paper: Section IV of arXiv" in said
    said = reference.help_text("study")
    assert "study.trials (default 200)\n  ensembles that the sampler proposes" in said
    with pytest.raises(ValueError, match=r"no studdy \(did you mean study\?\)"):
        reference.help_text("studdy")


def test_the_site_builds_without_warnings(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="pip install -e '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path / "site"), strict=True))
    assert (tmp_path / "site" / "index.html").is_file()


def test_the_examples_of_extending_run() -> None:
    """Blocks of one section share their names, as a reader would paste them into one file."""
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    sections = [section for section in page.split("\n## ") if "```python" in section]
    assert len(sections) >= 4
    for section in sections:
        names: dict[str, object] = {"__name__": "my_package.example"}
        for block in BLOCK.finditer(section):
            if block["kind"] == "python":
                exec(compile(block["text"], section.splitlines()[0], "exec"), names)
