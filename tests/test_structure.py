"""The rules of the house: who may import what."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src" / "expunge"
# Tool -> the only places in src/ that may import it.
OWNERS = {"mlflow": ("tracking", "serving/pyfunc.py"), "great_expectations": ("quality.py",), "prefect": (), "dvc": ()}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("tool", OWNERS)
def test_each_tool_has_one_importer(tool):
    for path in SRC.rglob("*.py"):
        if tool in {name.split(".")[0] for name in imports(path)}:
            assert str(path.relative_to(SRC)).startswith(OWNERS[tool]), f"{path} imports {tool}"


# Layer -> the layers of ours it may import.
LAYERS = {
    "core": {"core", "errors", "files"},
    "data": {"core", "data", "errors", "files", "progress"},
    "models": {"core", "data", "models", "errors", "files", "progress"},
    "evaluation": {"core", "evaluation", "errors", "files", "progress"},
    "features": {"core", "data", "models", "features", "errors", "files", "memory", "progress", "config"},
    "finetune": {"core", "data", "models", "features", "finetune", "errors", "files", "progress"},
    "report": {"evaluation", "report", "core", "data", "features", "errors", "files", "paths", "progress", "unlearned"},
}


@pytest.mark.parametrize("layer", LAYERS)
def test_arrows_point_one_way(layer):
    for path in (SRC / layer).rglob("*.py"):
        for name in imports(path):
            if name.startswith("expunge."):
                assert name.split(".")[1] in LAYERS[layer], f"{path.relative_to(SRC)} imports {name}"


def test_the_core_stands_alone():
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
    assert not long
