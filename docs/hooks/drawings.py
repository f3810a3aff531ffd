"""Draws the pictures of docs/architecture.md from the code: `python docs/hooks/drawings.py` writes them.

The stages come from dvc.yaml, the layers of packages from tests/test_structure.py.
"""

from __future__ import annotations

import ast
import re
import textwrap
from html import escape
from pathlib import Path
from typing import Any

import networkx as nx
import yaml

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "docs/images"
WIDTH, HEIGHT = 270, 94  # of the box of a stage, pixels
STEP_X, STEP_Y = 300, 134  # from one box to the next
# The columns that keep arrows off boxes; a stage that is not named here stands in the middle.
COLUMNS = {
    "activations": 2,
    "split": 0,
    "validate-split": 0,
    "retrain": 0,
    "extract-retrained": 0,
    "shadow": 2,
    "evaluate-references": 0,
}
STYLE = """<style>
  text { font-family: sans-serif; font-size: 12px; fill: #222; text-anchor: middle; }
  .name { font-size: 15px; font-weight: bold; }
  .file { fill: #555; font-family: monospace; font-size: 11px; }
  rect { fill: #eef1fb; stroke: #3f51b5; }
  .gate rect { fill: #fff3e0; stroke: #e68a00; }
  .paper { fill: #fff; stroke: none; }
  path { fill: none; stroke: #666; stroke-width: 1.5; marker-end: url(#tip); }
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">
  <polygon points="0,0 8,4 0,8" fill="#666"/></marker></defs>"""


def without_items(path: str) -> str:
    """The part of an output's path before the item of a matrix."""
    return re.split(r"[/-]\$\{", path)[0]


def outputs(stage: dict[str, Any]) -> list[str]:
    """Every file and folder that a stage writes."""
    listed = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
    return list(dict.fromkeys(without_items(o if isinstance(o, str) else next(iter(o))) for o in listed))


def inputs(stage: dict[str, Any]) -> list[str]:
    """Every file and folder that a stage reads, without params.yaml."""
    return [*stage["deps"], *(file for param in stage.get("params", []) if isinstance(param, dict) for file in param)]


def first_output(stage: dict[str, Any]) -> str:
    """The first path that a stage writes, with the item of a matrix in capitals."""
    first = stage["outs"][0]
    path = first if isinstance(first, str) else next(iter(first))
    return re.sub(r"\$\{item\.(\w+)\}", lambda item: item.group(1).upper(), path)


def stage_graph(stages: dict[str, Any]) -> nx.DiGraph:
    """Which stage reads what another one wrote, without the arrows that follow from others."""
    graph = nx.DiGraph()
    graph.add_nodes_from(stages)
    for reader, stage in stages.items():
        for writer, other in stages.items():
            for read in map(without_items, inputs(stage)):
                for written in outputs(other) if writer != reader else []:
                    if f"{read}/".startswith(f"{written}/") or f"{written}/".startswith(f"{read}/"):
                        graph.add_edge(writer, reader)
    return nx.transitive_reduction(graph)


def svg(width: int, height: int, lines: list[str]) -> str:
    """An SVG on white, readable in light and dark pages."""
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    paper = '<rect class="paper" width="100%" height="100%"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {size}>', STYLE, paper, *lines, "</svg>", ""])


def label(x: int, y: int, text: str, kind: str = "") -> str:
    return f'<text x="{x}" y="{y}"' + (f' class="{kind}"' if kind else "") + f">{escape(text)}</text>"


def draw_stages() -> str:
    """The stages of dvc.yaml from top to bottom, with what each one does and the first path that it writes."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    graph = stage_graph(stages)
    rows = [sorted(names, key=list(stages).index) for names in nx.topological_generations(graph)]
    places = {
        name: (20 + COLUMNS.get(name, 1) * STEP_X + WIDTH // 2, 20 + row * STEP_Y)
        for row, names in enumerate(rows)
        for name in names
    }
    lines = []
    for writer, reader in sorted(graph.edges):
        (x1, y1), (x2, y2) = places[writer], places[reader]
        y1 += HEIGHT
        lines.append(f'<path d="M{x1} {y1} C{x1} {max(y1 + 34, y2 - 20)} {x2} {y2 - 34} {x2} {y2}"/>')
    for name, (x, y) in places.items():
        said = textwrap.wrap(stages[name]["desc"].partition(";")[0], 40)
        lines += [
            '<g class="gate">' if name.startswith("validate") else "<g>",
            f'<rect x="{x - WIDTH // 2}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
            label(x, y + 20, name, "name"),
            *(label(x, y + 38 + 15 * i, line) for i, line in enumerate(said)),
            label(x, y + 85, first_output(stages[name]), "file"),
            "</g>",
        ]
    return svg(3 * STEP_X + 10, len(rows) * STEP_Y, lines)


def package_order() -> list[tuple[str, ...]]:
    """The layers of src/expunge/ that tests/test_structure.py enforces, the lowest first."""
    tree = ast.parse((ROOT / "tests/test_structure.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "ORDER":
            return list(ast.literal_eval(node.value))
    raise ValueError("tests/test_structure.py: no assignment to ORDER")


def draw_packages() -> str:
    """The layers of packages, what a person calls at the top."""
    layers = package_order()[::-1]
    lines, width, height, step = [], 130, 36, 62
    middle = 5 * (width + 12) // 2 + 10
    for row, names in enumerate(layers):
        y = 14 + row * step
        left = middle - (len(names) * (width + 12) - 12) // 2
        for column, name in enumerate(names):
            x = left + column * (width + 12)
            lines.append(f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>')
            lines.append(label(x + width // 2, y + 23, name, "name"))
        if row + 1 < len(layers):
            lines.append(f'<path d="M{middle} {y + height + 4} L{middle} {y + step - 4}"/>')
    return svg(2 * middle, len(layers) * step, lines)


DRAWINGS = {"stages.svg": draw_stages, "packages.svg": draw_packages}

if __name__ == "__main__":
    for file, draw in DRAWINGS.items():
        (IMAGES / file).write_text(draw(), encoding="utf-8")
        print(f"docs/images/{file}")
