"""Each stage of dvc.yaml depends on the code that its module imports, and on no other code."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from expunge.config import load_config
from expunge.stages import code
from expunge.system import imports, installed
from expunge.system.imports import PACKAGE, closure, imported
from expunge.system.installed import CODE_STAGE, stage_digests, stages
from expunge.system.paths import CODE

ROOT = Path(__file__).parents[1]
SRC = ROOT / "src"
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.mark.parametrize("stage", [name for name in STAGES if name != CODE_STAGE])
def test_a_stage_depends_on_the_digest_of_its_own_code(stage):
    spec = STAGES[stage]
    found = re.match(r"python -m expunge\.stages\.(\w+)", spec["cmd"])
    assert found, f"{stage}: the command {spec['cmd']!r} runs no stage of {PACKAGE}"
    named = [param[str(CODE)] for param in spec["params"] if isinstance(param, dict)]
    assert named == [[found[1]]] and found[1] in stages()
    assert not [dep for dep in spec["deps"] if str(dep).startswith("src")]


def test_one_stage_depends_on_the_whole_source_and_writes_the_digests():
    spec = STAGES[CODE_STAGE]
    assert next(iter(STAGES)) == CODE_STAGE and spec["cmd"] == "python -m expunge.stages.code"
    assert spec["deps"] == ["src/expunge"] and spec["outs"] == [str(CODE)]


def test_the_stage_writes_a_digest_for_each_other_stage(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code.main()
    written = json.loads(CODE.read_text())
    assert set(written) == {path.stem for path in (SRC / PACKAGE / "stages").glob("[!_]*.py")} - {CODE_STAGE}
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in written.values())
    assert written == stage_digests()
    code.main()
    assert json.loads(CODE.read_text()) == written


def test_fit_imports_the_methods_and_not_the_report():
    parts = stages()["fit"]
    assert {"config", "methods", "finetune", "system", "stages.__init__", "stages.fit"} <= set(parts)
    assert not {"report", "tracking", "stages.report", "__init__"} & set(parts)


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


@pytest.fixture
def small_package(tree, monkeypatch):
    monkeypatch.setattr(installed, "PACKAGE", tree / PACKAGE)
    imports.imported.cache_clear()
    imports.statements.cache_clear()
    return tree / PACKAGE


def test_the_closure_follows_functions_and_relative_imports(tree):
    found = {str(p.relative_to(tree / PACKAGE)) for p in closure(tree, "expunge.stages.fit")}
    everything = {str(p.relative_to(tree / PACKAGE)) for p in tree.rglob("*.py")}
    assert found == everything - {"unused.py"}


def test_an_import_of_what_does_not_exist_is_named(tree):
    (tree / PACKAGE / "top.py").write_text("import expunge.gone")
    with pytest.raises(ValueError, match=r"imports expunge\.gone, which does not exist"):
        closure(tree, "expunge.top")


def test_packages_count_whole_and_stages_one_by_one(small_package):
    assert stages() == {
        "common": ["stages.__init__", "stages.common"],
        "fit": ["a", "b", "stages.__init__", "stages.common", "stages.fit", "top"],
    }


@pytest.mark.parametrize(
    ("file", "stale"),
    [
        ("b/__init__.py", {"fit"}),
        ("top.py", {"fit"}),
        ("a/deep/three.py", {"fit"}),
        ("a/text.html", {"fit"}),  # what a package contains belongs to it
        ("stages/common.py", {"common", "fit"}),
        ("stages/__init__.py", {"common", "fit"}),
        ("unused.py", set()),
    ],
)
def test_a_change_gives_other_digests_to_the_stages_that_import_it(small_package, file, stale):
    before = stage_digests()
    with (small_package / file).open("a") as f:
        f.write("# changed\n")
    after = stage_digests()
    assert {stage for stage in before if before[stage] != after[stage]} == stale


@pytest.mark.parametrize(
    ("part", "stale"),
    [
        ("training", {"model", "margins"}),
        ("finetune", {"model", "margins"}),
        ("methods", {"margins"}),
        ("evaluation", {"margins"}),
        ("shadow", {"margins"}),
        ("report", set()),
        ("tracking", set()),
    ],
)
def test_shadow_networks_are_stale_when_code_that_made_them_changes(part, stale, monkeypatch):
    """Shadow networks are not outputs of DVC stages of their own, so they carry a digest of the code instead."""
    from expunge.shadow.networks import Job

    data, rows = SimpleNamespace(digest="d"), SimpleNamespace(request={"digest": "s"})
    job = Job(load_config(ROOT / "params.demo.yaml"), data, rows, None, None, ROOT, ROOT)

    def keys() -> dict[str, str]:
        return {"model": job.model_key("trained", 1), "margins": job.margins_key("trained", 1)}

    before, digest_of_part = keys(), installed.code_digest
    assert keys() == before
    monkeypatch.setattr(installed, "code_digest", lambda unit: "other" if unit == part else digest_of_part(unit))
    after = keys()
    assert {name for name in before if before[name] != after[name]} == stale
