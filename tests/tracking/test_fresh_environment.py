"""Test that a registered version gives the evaluation's probabilities where only its requirements are installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pytest

ASK = """
import sys
import mlflow, numpy as np
try:
    import expunge
except ImportError:
    pass
else:
    raise SystemExit("expunge is installed here")
np.save(sys.argv[3], mlflow.pyfunc.load_model(sys.argv[1]).predict(np.load(sys.argv[2])))
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_version_answers_as_evaluated_in_an_environment_of_its_requirements(finished, tmp_path, monkeypatch):
    from expunge.data.dataset import Dataset
    from expunge.system.paths import DATASET
    from expunge.tracking.examples import examples_with_answers

    monkeypatch.chdir(finished)
    receipt = json.loads((finished / "reports/registration.json").read_text())
    images, expected = examples_with_answers(receipt["method"], Dataset(DATASET))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{finished / 'mlflow.db'}")
    model = Path(
        mlflow.artifacts.download_artifacts(
            f"models:/{receipt['model']}@challenger",
            dst_path=str(tmp_path),
            tracking_uri=f"sqlite:///{finished / 'mlflow.db'}",
        )
    )
    wanted = (model / "requirements.txt").read_text().split()
    assert all("==" in line for line in wanted) and not any("expunge" in line for line in wanted)

    python = tmp_path / "venv/bin/python"
    # No setting of this environment must reach the new one.
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI")}
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], env=env, check=True)
    install = [str(python), "-m", "pip", "install", "-q", "--no-compile", "-r", str(model / "requirements.txt")]
    subprocess.run(install, env=env, check=True)
    np.save(tmp_path / "images.npy", images)
    command = [str(python), "-c", ASK, str(model), str(tmp_path / "images.npy"), str(tmp_path / "answers.npy")]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    np.testing.assert_allclose(np.load(tmp_path / "answers.npy"), expected, atol=1e-5)
