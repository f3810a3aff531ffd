"""Fixtures that all tests share. Every process computes with one thread, because tests run in parallel on few cores."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from expunge.system import limits
from tests import offline
from tests.declared import write_package
from tests.pipeline import ENVIRONMENT, dvc, lay_out, lay_out_short, warm_stages
from tests.suites import SUITES

TESTS = Path(__file__).parent
MARKS = {TESTS / file: [name for name in SUITES if file in SUITES[name]] for files in SUITES.values() for file in files}
EXAMPLES = Path(__file__).parents[1] / "examples"
# torch reads these variables when it is imported, which nothing above does.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = "1"
os.environ["EXPUNGE_WARM"] = "0"  # only the tests of `warm` leave a server behind, and end it


@pytest.hookimpl(tryfirst=True)  # It must run before xdist reads the marks.
def pytest_collection_modifyitems(items):
    """Mark the tests of the suites, and run all tests of the finished pipeline on one worker, so that it is made once.

    The other tests of a module run on one worker too, for the sake of what they share.
    """
    for item in items:
        for mark in MARKS.get(item.path, ()):
            item.add_marker(mark)
        if {"finished", "copy", "fit_inputs", "short"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.xdist_group("pipeline"))
        elif not item.get_closest_marker("xdist_group"):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(autouse=True)
def default_limits():
    """Put the default limits back into force, because whoever reads a params.yaml puts its limits into force."""
    yield
    limits.use(limits.DEFAULTS)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol():
    """Put back the path after each test, also what fixtures of a module changed.

    MLflow puts the code of a model that it loads first on the path, and new processes inherit the path.
    """
    before = sys.path.copy()
    result = yield
    sys.path[:] = before
    return result


@pytest.fixture
def declare(tmp_path, monkeypatch):
    """Return a function that installs packages `plugin_0`, `plugin_1`, ..., each with one entry point.

    The function returns the folder of their modules, which is on the path.
    """
    from expunge.system import plugins

    folder = tmp_path / "site"
    folder.mkdir()
    before = set(sys.modules)

    def install(kind: str, name: str, value: str) -> Path:
        number = len(list(folder.glob("*.dist-info")))
        write_package(folder, f"plugin_{number}", {kind: {name: value}})
        plugins.declared.cache_clear()
        return folder

    monkeypatch.syspath_prepend(folder)
    monkeypatch.syspath_prepend(EXAMPLES / "expunge-seven-segments/src")
    yield install
    plugins.declared.cache_clear()
    for name in set(sys.modules) - before:
        if any(str(getattr(sys.modules[name], "__file__", None)).startswith(str(p)) for p in (folder, EXAMPLES)):
            del sys.modules[name]


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """Return a workspace in which `dvc repro` ran all stages. Tests may only read it."""
    workspace = lay_out(tmp_path_factory.mktemp("finished") / "workspace")
    with warm_stages() as env:
        (workspace / "log.txt").write_text(dvc(workspace, "repro", env=env))
    return workspace


@pytest.fixture(scope="session")
def short(tmp_path_factory) -> Path:
    """Return a workspace in which `dvc repro` ran all stages of a short pipeline without any outside connection.

    Tests may only read it. `record/connections` beside it names what the pipeline tried to reach.
    """
    workspace = lay_out_short(tmp_path_factory.mktemp("short") / "workspace")
    env = offline.environment(ENVIRONMENT, workspace.parent / "record")
    done = offline.run([sys.executable, "-m", "dvc", "repro"], workspace, env)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (workspace / "log.txt").write_text(done.stdout)
    return workspace


@pytest.fixture
def run_dir():
    """Return a folder with a short path, since the path of a socket may not be long."""
    with tempfile.TemporaryDirectory(prefix="warm", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def copy(finished, tmp_path) -> Path:
    """Return a copy of the finished workspace that a test may change."""
    workspace = tmp_path / "workspace"
    shutil.copytree(finished, workspace, symlinks=True)
    return workspace


@pytest.fixture(scope="session")
def fit_inputs(finished):
    """Return the inputs of a method in the finished workspace."""
    import numpy as np

    from expunge.data.dataset import Dataset
    from expunge.data.split import Split
    from expunge.features.store import FeatureStore
    from expunge.methods.inputs import FitInputs
    from expunge.models.checkpoint import load_classifier

    split = Split(finished / "data/split")
    return FitInputs(
        store=FeatureStore(finished / "data/features/original"),
        activations_dir=finished / "data/activations",
        dataset=Dataset(finished / "data/dataset"),
        classifier=load_classifier(finished / "models/original"),
        forget_rows=split.rows("forget"),
        retain_rows=split.rows("retain"),
        forget_classes=split.request["whole_classes"],
        validation_rows=np.flatnonzero(split.validation_mask),
    )
