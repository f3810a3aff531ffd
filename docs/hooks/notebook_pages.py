"""The pages made from docs/notebooks: text, code and the outputs that are stored in each notebook."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import nbformat

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
# A link in HTML, because the hook turns links to notebooks in Markdown into links to their pages.
NOTE = """
!!! note

    This page is a Jupyter notebook with the outputs that it stores. <a href="{name}.ipynb" download>Download it</a> to
    run it yourself, in an environment that has Expunge and Jupyter.
"""


def notebook_files() -> dict[str, str | bytes]:
    """A page for each notebook, and the pictures among its outputs, by their paths below docs/."""
    files: dict[str, str | bytes] = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text, pictures = notebook_page(path)
        files[f"notebooks/{path.stem}.md"] = text
        files |= {f"notebooks/{name}": picture for name, picture in pictures.items()}
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The notebook as Markdown, and its pictures by file name.

    Raises:
        ValueError: a code cell has not been run, or has an output that is neither printed text nor a PNG picture.
    """
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        if cell.execution_count is None:
            raise ValueError(f"{path.name}, cell {number}: has not been run; run the notebook and save it")
        parts.append(f"```python\n{cell.source}\n```")
        for kind, content in outputs(cell, f"{path.name}, cell {number}"):
            if kind == "text":
                parts.append(f'```text title="Output"\n{content}\n```')
            else:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(content)
                parts.append(f"![The figure that the code above draws]({name})")
    title, *rest = parts[0].split("\n", 1)
    return "\n\n".join([title, NOTE.format(name=path.stem).strip(), *rest, *parts[1:]]) + "\n", pictures


def outputs(cell: nbformat.NotebookNode, place: str) -> Iterator[tuple[str, str]]:
    """The outputs of a cell as ("text", what it printed) and ("picture", PNG in base 64), in their order.

    Neighbouring pieces of printed text are joined. What goes to stderr is left out: progress and warnings.
    """
    printed = ""
    for output in cell.outputs:
        if output.output_type == "stream":
            printed += output.text if output.name == "stdout" else ""
            continue
        if "image/png" not in output.get("data", {}):
            raise ValueError(f"{place}: has an output of type {output.output_type} without a PNG picture")
        if printed:
            yield "text", printed.rstrip("\n")
            printed = ""
        yield "picture", output.data["image/png"]
    if printed:
        yield "text", printed.rstrip("\n")
