"""MkDocs hooks: the configuration reference, formulas as MathML, the drawing of the wings as SVG.

So the site needs no script from another host. Formulas are `$$...$$` on lines of their own.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
CONF = ROOT / "conf"
MARK = "<!-- configuration reference -->"
BLOCK = re.compile(r"^```mermaid\n(.+?)^```$", re.DOTALL | re.MULTILINE)
NODE = re.compile(r'^\s*(?P<name>\w+)\["(?P<text>[^"]+)"\]')
ARROWS = re.compile(r"^\s*(?P<start>\w+) --> (?P<ends>\w+(?: & \w+)*)$")
WIDTH, HEIGHT, STEP = 280, 40, 66  # of a box; from one level to the next


def on_page_markdown(markdown: str, **_: object) -> str:
    if MARK in markdown:
        markdown = markdown.replace(MARK, reference())
    markdown = BLOCK.sub(lambda match: drawing(match[1]), markdown)
    return re.sub(r"^\$\$(.+?)\$\$$", _formula, markdown, flags=re.DOTALL | re.MULTILINE)


def _formula(match: re.Match[str]) -> str:
    from latex2mathml.converter import convert

    math = convert(" ".join(match[1].split()), display="block")
    return f'<div class="formula">{math}</div>'


def arrows(flowchart: str) -> dict[str, list[str]]:
    """Node -> the nodes that its arrows point at."""
    found: dict[str, list[str]] = {}
    for match in filter(None, map(ARROWS.match, flowchart.splitlines())):
        found.setdefault(match["start"], []).extend(match["ends"].split(" & "))
    return found


def drawing(flowchart: str) -> str:
    """An SVG of a mermaid flowchart: a column for each subgraph, the other nodes above."""
    column, columns, texts = -1, {}, {}
    inside = False
    for line in flowchart.splitlines():
        if line.strip().startswith("subgraph"):
            column, inside = column + 1, True
        elif line.strip() == "end":
            inside = False
        elif match := NODE.match(line):
            columns[match["name"]] = column if inside else None
            texts[match["name"]] = match["text"]
    to = arrows(flowchart)

    def level(name: str) -> int:
        return 1 + max(map(level, to.get(name, [])), default=-1)

    top = max(map(level, texts))
    width = (column + 1) * (WIDTH + 30)
    middle = {c: c * (WIDTH + 30) + WIDTH // 2 + 5 for c in range(column + 1)}
    middle[None] = WIDTH + 20
    place = {name: (middle[columns[name]], 8 + STEP * (top - level(name))) for name in texts}
    parts = [
        f'<line x1="{place[a][0]}" y1="{place[a][1] + HEIGHT}" x2="{place[b][0]}" '
        f'y2="{place[b][1] - 3}" marker-end="url(#tip)"/>'
        for a, ends in to.items()
        for b in ends
    ]
    for name, (x, y) in place.items():
        parts.append(
            f'<rect x="{x - WIDTH // 2}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
        )
        bold, _, rest = texts[name].partition(": ")
        words = f'<tspan font-weight="bold">{bold}</tspan> {rest}'
        parts.append(f'<text x="{x}" y="{y + 25}" text-anchor="middle">{words}</text>')
    tip = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
    )
    size = f'viewBox="0 0 {width} {STEP * (top + 1)}"'
    return f'<div class="wings"><svg {size} role="img">{tip}{"".join(parts)}</svg></div>'


def reference() -> str:
    """The keys of every job first, then one section per group: its keys, then its choices."""
    from ptsearch.evaluation.reference import groups, keys

    parts = ["## In every job", "", table(keys())]
    for group in groups():
        parts += ["", f"## {group}", "", table(keys(group)), *_choices(group)]
    return "\n".join([*parts, "", "## published", "", *_choices("published")])


def _choices(group: str) -> list[str]:
    parts = []
    for path in sorted((CONF / group).glob("*.yaml")):
        text = path.read_text(encoding="utf-8").strip()
        parts += ["", f'??? note "{group}={path.stem}"', "", "    ```yaml"]
        parts += [f"    {line}".rstrip() for line in text.splitlines()]
        parts += ["    ```"]
    return parts


def table(rows: Sequence[tuple[str, str, str]]) -> str:
    lines = [f"| `{key}` | `{value}` | {_escaped(comment)} |" for key, value, comment in rows]
    return "\n".join(["| key | default | |", "|---|---|---|", *lines])


def _escaped(comment: str) -> str:
    """A bar would end the cell, a star or an underscore would be markup."""
    return re.sub(r"([|*_<])", r"\\\1", comment)
