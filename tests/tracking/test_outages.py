"""Test logging and registering with a tracking server that is busy, loses answers, or stops in the middle.

Every run and version exists exactly once, at the latest after the next call. The server is MLflow's own, behind a
proxy that fails on purpose.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from expunge.system.errors import TrackingError
from expunge.tracking import CHALLENGER, Version, aliased, connect, register_model
from tests.flaky import BUSY, DEAD, LOST, flaky
from tests.tracking.test_registry import submission
from tests.tracking.test_runs import SUMMARY, log

CANDIDATES = 6  # These are the run of the pipeline, three references and two methods.


@pytest.fixture
def proxy(server, monkeypatch):
    """Yield a proxy between client and server that can fail on purpose. The client repeats calls without a pause."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with flaky(server) as result:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", result.url)
        yield result


@pytest.fixture
def work(proxy, tmp_path, monkeypatch, request):
    """Return a name, and a function that logs a run and registers a version as the stage does.

    Experiment and model have that name.
    """
    monkeypatch.chdir(tmp_path)
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)
    given = replace(submission(tmp_path, "mlp"), name=name, content=f"sha256:{name}")
    summary = {**SUMMARY, "request": {**SUMMARY["request"], "digest": f"sha256:{name}"}}

    def call() -> Version:
        ids = log(summary, experiment=name)
        return register_model(replace(given, run_id=ids.children["ru-linear"]))

    return name, call


def statuses(name: str) -> Counter:
    client = connect()
    experiment = client.get_experiment_by_name(name)
    return Counter(r.info.status for r in client.search_runs([experiment.experiment_id])) if experiment else Counter()


def versions(name: str) -> list[str]:
    """Return the numbers of the versions, after asserting that each was checked and the newest is the challenger."""
    client = connect()
    found = client.search_model_versions(f"name = '{name}'")
    assert all("parity" in v.tags for v in found)
    assert aliased(client, name, CHALLENGER).version == max((str(v.version) for v in found), key=int)
    return [v.version for v in found]


@pytest.mark.long
@pytest.mark.slow
def test_a_busy_server_that_loses_answers(proxy, work):
    """About every fifth request fails.

    It is answered with status 503, as for "database is locked", or it is carried out and its answer is lost.
    """
    name, call = work
    rng = np.random.default_rng(0)
    fates = {int(n): str(rng.choice([BUSY, LOST])) for n in np.flatnonzero(rng.random(2000) < 0.2)}
    proxy.plan(fates.get)
    assert call().new
    assert len([n for n in fates if n <= proxy.seen]) > 10
    proxy.back()
    ended = statuses(name)
    assert ended["FINISHED"] == CANDIDATES and ended["RUNNING"] == 0
    assert len(versions(name)) == 1
    call()
    assert len(versions(name)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("first", "last"), [(2, 20), (40, 70)], ids=["logging", "registering"])
def test_a_server_that_dies_in_the_middle(first, last, proxy, work, monkeypatch):
    name, call = work
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    moment = int(np.random.default_rng(0).integers(first, last))
    proxy.plan(lambda number: DEAD if number == moment else None)
    began = time.monotonic()
    with pytest.raises(TrackingError, match="logging" if last == 20 else "registering") as e:
        call()
    assert time.monotonic() - began < 120
    assert proxy.url in str(e.value) and "\n" not in str(e.value)
    proxy.back()
    before = statuses(name)
    call()
    after = statuses(name)
    assert after["FINISHED"] == before["FINISHED"] + CANDIDATES and after["RUNNING"] == 0
    assert len(versions(name)) == 1
