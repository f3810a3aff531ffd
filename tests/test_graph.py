"""Each stage of dvc.yaml depends on the code that its module imports, and on nothing else of src/."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.imports import PACKAGE, closure, covers, imported, unit

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def problems(root: Path, module: str, deps: list[Path]) -> list[str]:
    """Return which files of the closure of `module` are missing in `deps` (below `root`), and which are superfluous.

    Packages count as a whole. In the package of the stage itself files count one by one, because stages do not depend
    on each other's modules. The `__init__` of expunge is left out, because another test asserts that it imports
    nothing.
    """
    files = closure(root, module) - {root / PACKAGE / "__init__.py"}
    own = unit(root, root.joinpath(*module.split(".")))
    wanted = {path if own in path.parents else unit(root, path) for path in files}
    missing = [f"missing: {w.relative_to(root)}" for w in sorted(wanted) if not any(covers(d, w) for d in deps)]
    return missing + [
        f"superfluous: {dep.relative_to(root)}"
        for dep in sorted(deps)
        if dep in (root, root / PACKAGE) or not any(covers(dep, path) for path in files)
    ]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_that_it_imports(stage):
    spec = STAGES[stage]
    found = re.search(r"python -m (expunge[\w.]*)", spec["cmd"])
    assert found, f"{stage}: the command {spec['cmd']!r} runs no module of {PACKAGE}"
    names = [dep if isinstance(dep, str) else next(iter(dep)) for dep in spec["deps"]]
    deps = [ROOT / name for name in names if Path(name).parts[0] == "src"]
    assert not (absent := [str(dep.relative_to(ROOT)) for dep in deps if not dep.exists()]), (
        f"{stage}: no such {absent}"
    )
    found_problems = problems(SRC, found[1], deps)
    assert not found_problems, f"dvc.yaml, stage {stage} ({found[1]}): " + "; ".join(found_problems)


def test_the_package_itself_imports_nothing():
    assert imported(SRC, PACKAGE) == set()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    files = {
        "__init__.py": "",
        "stages/__init__.py": "",
        "stages/common.py": "",
        "stages/fit.py": "from expunge.stages import common\ndef f():\n    from expunge.a.deep import two",
        "a/__init__.py": "",
        "a/deep/__init__.py": "",
        "a/deep/two.py": "from ...b import VALUE\nfrom . import three",
        "a/deep/three.py": "if TYPE_CHECKING:\n    import expunge.unused\nelse:\n    import expunge.top",
        "b/__init__.py": "VALUE = 1",
        "top.py": "",
        "unused.py": "",
    }
    for name, text in files.items():
        path = tmp_path / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_the_closure_follows_functions_and_relative_imports(tree):
    found = {str(p.relative_to(tree / PACKAGE)) for p in closure(tree, "expunge.stages.fit")}
    everything = {str(p.relative_to(tree / PACKAGE)) for p in tree.rglob("*.py")}
    assert found == everything - {"unused.py"}


GOOD = ("stages/fit.py", "stages/common.py", "stages/__init__.py", "a", "b", "top.py")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d, []),
        (lambda d: d - {"b"}, ["missing: expunge/b"]),
        (lambda d: d - {"a"} | {"a/deep"}, ["missing: expunge/a"]),
        (lambda d: d - {"stages/common.py"}, ["missing: expunge/stages/common.py"]),
        (lambda d: d - {"stages/fit.py", "stages/common.py", "stages/__init__.py"} | {"stages"}, []),
        (lambda d: d | {"unused.py"}, ["superfluous: expunge/unused.py"]),
        (lambda d: set(), [f"missing: expunge/{name}" for name in sorted(GOOD)]),
    ],
)
def test_what_is_missing_and_superfluous_is_named(tree, change, expected):
    assert problems(tree, "expunge.stages.fit", [tree / PACKAGE / name for name in change(set(GOOD))]) == expected


def test_the_whole_source_is_no_dependency(tree):
    assert problems(tree, "expunge.stages.fit", [tree / PACKAGE]) == ["superfluous: expunge"]


@pytest.mark.parametrize(
    ("module", "named"),
    [("expunge.training.recipe", "TRAINING_CODE"), ("expunge.shadow.networks", "FITTING_CODE")],
)
def test_shadow_networks_are_stale_when_code_that_made_them_changes(module, named):
    """Shadow networks are not outputs of DVC stages of their own, so they carry a digest of the code instead."""
    from expunge.shadow import networks

    needed = {unit(SRC, path).name for path in closure(SRC, module)} - {"__init__.py"}
    assert set(getattr(networks, named)) == needed
