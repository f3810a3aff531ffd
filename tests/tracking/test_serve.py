"""Test a registered version behind MLflow's scoring server, over HTTP, and with MLflow's command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest

from expunge.tracking import Submission, register_model
from tests.served_models import pictures
from tests.servers import end, free_port, wait_for
from tests.tracking.test_registry import submission

pytestmark = pytest.mark.slow

ENV = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def served(new_database, tmp_path_factory) -> Iterator[tuple[str, Path, Submission]]:
    """Yield the address of a running scoring server, the model's directory, and the submission it was made from."""
    home = tmp_path_factory.mktemp("serve")
    (home / "mlflow.db").write_bytes(new_database.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow.db'}")
        s = submission(home, "mlp")
        local = mlflow.artifacts.download_artifacts(register_model(s).uri, dst_path=str(home / "model"))
    port, log = free_port(), home / "log"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", local, "--env-manager", "local"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=home, env=ENV, stdout=out, stderr=out)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        yield f"http://127.0.0.1:{port}/invocations", Path(local), s
    finally:
        end(process)


def ask(url: str, body: object) -> tuple[int, dict]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=300) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


@pytest.mark.parametrize("key", ["inputs", "instances"])
def test_raw_images_in_probabilities_out(key, served):
    url, _, s = served
    for rows in (slice(0, 1), slice(None)):
        status, answer = ask(url, {key: s.inputs[rows].tolist()})
        assert status == 200
        np.testing.assert_allclose(answer["predictions"], s.expected[rows], atol=1e-5)


def test_answers_carry_the_names_of_the_classes_on_request(served):
    url, _, s = served
    status, answer = ask(url, {"inputs": s.inputs[:2].tolist(), "params": {"names": True}})
    assert status == 200 and [list(row) for row in answer["predictions"]] == [list(s.classes)] * 2
    given = [list(row.values()) for row in answer["predictions"]]
    np.testing.assert_allclose(given, s.expected[:2], atol=1e-5)


BAD = {
    "too large": ({"inputs": np.full((1, 12, 10), 256).tolist()}, "out of bounds"),
    "negative": ({"inputs": np.full((1, 12, 10), -1).tolist()}, "out of bounds"),
    "scaled": ({"inputs": (pictures(1) / 255).tolist()}, r"scaled to [0, 1]"),
    "shape": ({"inputs": pictures(1, (10, 12)).tolist()}, "does not match expected shape"),
    "ragged": ({"inputs": [[[1, 2], [3]]]}, "inhomogeneous"),
    "text": ({"inputs": "hello"}, "hello"),
    "no key": ({"images": []}, "dataframe_split"),
    "not JSON": (b"{", "JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests_get_400_and_a_reason(name, served):
    body, reason = BAD[name]
    status, answer = ask(served[0], body)
    assert status == 400 and reason in answer["message"]
    assert "Traceback" not in json.dumps(answer)


def test_the_servers_own_example_works(served):
    url, local, s = served
    status, answer = ask(url, (local / "serving_input_example.json").read_bytes())
    assert status == 200
    np.testing.assert_allclose(answer["predictions"], s.expected[:4], atol=1e-5)


@pytest.mark.slow
def test_predict_from_the_command_line(served, tmp_path):
    _, local, s = served
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "mlflow", "models", "predict", "-m", str(local), "--env-manager", "local"]
    command += ["--content-type", "json", "--output-path", str(out)]
    for name, ok in (("good", True), ("bad", False)):
        images = s.inputs if ok else s.inputs[:, :5]
        (tmp_path / name).write_text(json.dumps({"inputs": images.tolist()}))
        out.unlink(missing_ok=True)
        done = subprocess.run([*command, "--input-path", str(tmp_path / name)], env=ENV, capture_output=True, text=True)
        assert (done.returncode == 0, out.exists()) == (ok, ok), done.stderr[-2000:]
        if ok:
            np.testing.assert_allclose(json.loads(out.read_text())["predictions"], s.expected, atol=1e-5)
        else:
            assert "does not match expected shape" in done.stderr
