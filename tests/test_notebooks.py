"""Test the notebooks in docs/notebooks: they run, and their stored outputs are of the same kinds as those of a run."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
from pathlib import Path

import pytest

from tests.pipeline import ROOT

NOTEBOOKS = ROOT / "docs/notebooks"
NAMES = ("first-request", "library-alone", "reading-a-verdict")
LINES = 20  # A cell has at most this many lines.
# Notebooks may import only from these public modules.
LIBRARY = ("expunge", "expunge.core", "expunge.evaluation", "expunge.testing")


PUBLIC = {f"{m}.{name}" for m in LIBRARY for name in getattr(importlib.import_module(m), "__all__", [])}


def imported(text: str) -> list[str]:
    """Return all names that a cell imports from this package, as `module.name`, or `module` for a whole module."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
    return [name for name in found if name.partition(".")[0] == "expunge"]


def code(name: str) -> list[dict]:
    cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text())["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def kinds(cell: dict) -> list[str]:
    """Return the kinds of output of a cell: "text" once, "picture", or another output type of Jupyter.

    Messages about progress are left out.
    """
    found = []
    for out in cell["outputs"]:
        if out["output_type"] == "stream":
            text = "".join(out["text"])
            if out["name"] == "stdout" and not text.startswith("extract:"):
                found.append("text")
        else:
            found.append("picture" if "image/png" in out.get("data", {}) else out["output_type"])
    return [kind for i, kind in enumerate(found) if kind != "text" or found[:i].count("text") == 0]


def test_every_notebook_is_here_and_the_docs_name_it():
    assert sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")) == sorted(NAMES)
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/notebooks/{name}.ipynb" in readme for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_kept_as_it_was_run_with_short_cells_of_the_public_library(name):
    cells = code(name)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert any("picture" in kinds(cell) for cell in cells)
    for cell in cells:
        text = "".join(cell["source"])
        assert len(text.splitlines()) <= LINES, text
        assert [name for name in imported(text) if name not in PUBLIC] == []


def test_public_names_are_documented():
    for module in ("expunge.core", "expunge.evaluation"):
        package = importlib.import_module(module)
        assert [n for n in package.__all__ if not inspect.getdoc(getattr(package, n))] == []
        # A public name that is also the name of a module would hide the module from `from package import module`.
        assert [n for n in package.__all__ if inspect.ismodule(getattr(package, n))] == []
        assert {p.stem for p in Path(package.__file__).parent.glob("*.py")} & set(package.__all__) == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_and_puts_out_what_is_kept(name, tmp_path, monkeypatch):
    for package in ("nbclient", "ipykernel"):
        pytest.importorskip(package, reason="`make test` installs it from requirements-dev.lock")
    import nbformat
    from nbclient import NotebookClient

    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable.lower()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    place = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    result = [kinds(cell) for cell in notebook.cells if cell["cell_type"] == "code"]
    assert result == [kinds(cell) for cell in code(name)]
