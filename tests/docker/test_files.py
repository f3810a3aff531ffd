"""The compose file, Dockerfiles and scripts are checked as far as that is possible without a container engine."""

from __future__ import annotations

import fnmatch
import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.docker.composed import COMPOSE, DOCKER, ROOT, VARIABLE, Image, load

BIN = Path(sys.executable).parent
DOCKERFILES = sorted(DOCKER.glob("*.Dockerfile"))
SERVICES = load()["services"]


def passes(*command: str | Path) -> None:
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_linters_find_nothing_in_the_files_of_docker():
    passes(BIN / "hadolint", *DOCKERFILES)
    lint = [BIN / "compose-lint", "check", "--strict-config", "--config", DOCKER / ".compose-lint.yml"]
    passes(*lint, "--fail-on", "low", COMPOSE)
    for script in DOCKER.glob("*.sh"):
        passes("sh", "-n", script)


def test_the_compose_file_follows_the_specification(tmp_path):
    pytest.importorskip("check_jsonschema")
    check = [BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec"]
    passes(*check, COMPOSE)
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("stop_grace_period", "stop_grace_time"))
    assert subprocess.run([*check, wrong], capture_output=True).returncode == 1


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_is_confined(name):
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["user"].split(":")[0]) > 0
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    assert "build" in service or re.search(r"@sha256:[0-9a-f]{64}$", service["image"])
    assert name == "setup" or "healthcheck" in service


def test_only_the_three_that_people_talk_to_have_a_port():
    assert {name for name, service in SERVICES.items() if "ports" in service} == {"storage", "mlflow", "prefect"}


def test_base_images_are_pinned_by_digest():
    for path in DOCKERFILES:
        assert re.match(r"(?:#.*\n)*FROM \S+:[\w.-]+@sha256:[0-9a-f]{64}\n", path.read_text()), path


def test_variables_are_the_ones_that_the_example_shows():
    text = (DOCKER / ".env.example").read_text()
    shown = dict(line.split("=") for line in text.splitlines() if line and not line.startswith("#"))
    assert shown == dict(VARIABLE.findall(COMPOSE.read_text()))


def test_secrets_are_made_once_and_stand_in_no_file(tmp_path):
    folder = tmp_path / "secrets"
    for _ in range(2):
        passes(DOCKER / "secrets.sh", folder)
        secrets = {path.name: path.read_text() for path in folder.iterdir()}
        seen = locals().get("seen", secrets)
        assert secrets == seen
    assert folder.stat().st_mode & 0o777 == 0o700
    named = {Path(secret["file"]).name: name for name, secret in load()["secrets"].items()}
    assert set(secrets) == set(named) == set(named.values())
    used = {secret for service in SERVICES.values() for secret in service.get("secrets", ())}
    assert used == set(named)
    identities = json.loads(secrets["s3_identities"])["identities"]
    keys = [identity["credentials"][0]["secretKey"] for identity in identities]
    values = [secrets[name] for name in secrets if name.endswith(("password", "key", "auth"))]
    assert len(set(keys + values)) == len(keys + values) and min(map(len, keys + values)) >= 48
    for identity, key in zip(identities, keys, strict=True):
        assert key in secrets[f"{identity['name']}_credentials"]


def test_each_service_mounts_the_secrets_it_reads_and_no_others():
    for name, service in SERVICES.items():
        output = json.dumps([service.get("environment"), service.get("command"), service.get("healthcheck")])
        if name == "postgres":
            output += (DOCKER / "postgres.sh").read_text()
        assert set(re.findall(r"/run/secrets/(\w+)", output)) == set(service.get("secrets", ())), name


def test_no_secret_is_in_git():
    ignored = ["docker/secrets/prefect_auth", "docker/.env"]
    done = subprocess.run(["git", "check-ignore", *ignored], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout.split() == ignored


def admitted(path: str) -> bool:
    """Return whether .dockerignore lets a file into the build. The last line that matches decides."""
    answer = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            above = [path, *map(str, Path(path).parents)]
            if any(fnmatch.fnmatch(part, pattern) for part in above) or fnmatch.fnmatch(path, pattern.lstrip("*/")):
                answer = line.startswith("!")
    return answer


def test_what_the_images_copy_reaches_the_build_and_nothing_else():
    copied = {source for service in SERVICES.values() for source, _ in Image(service).copies}
    opened = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == opened
    for source in copied:
        assert (ROOT / source).exists() and admitted(source), source
    assert not admitted("docker/secrets/prefect_auth") and not admitted(".git/config") and not admitted("data/dataset")


def requirements_of(name: str) -> set[str]:
    found = (Requirement(line) for line in importlib.metadata.requires(name) or ())
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""})}


def test_the_tracking_image_takes_just_what_its_servers_need_from_the_lock_file():
    """The Dockerfile's own filter runs on the lock file, and the metadata of installed packages says what is needed."""
    pytest.importorskip("flask_wtf", reason="needs mlflow[auth]")
    text = re.sub(r"\\\n\s*", "", (DOCKER / "tracking.Dockerfile").read_text())
    awk = re.search(r"RUN (awk .*?)/tmp/pipeline-only.txt /tmp/requirements.lock >", text)
    assert awk
    run = f"{awk[1]} docker/pipeline-only.txt requirements.lock"
    lines = subprocess.run(run, shell=True, cwd=ROOT, text=True, capture_output=True, check=True).stdout
    pinned = {line.split("==")[0] for line in lines.splitlines() if re.match(r"[a-z0-9].*==", line)}
    needed, todo = set(), {"mlflow", "prefect", "psycopg2-binary", "boto3", "flask-wtf"}
    while todo:
        needed |= todo
        todo = set().union(*map(requirements_of, todo)) - needed
    here = {canonicalize_name(d.metadata["Name"]) for d in importlib.metadata.distributions()}
    assert needed - pinned == set(), "take these out of docker/pipeline-only.txt"
    assert (pinned & here) - needed == set(), "add these to docker/pipeline-only.txt"
    assert lines.count("--hash=") > len(pinned)


def test_secrets_reach_programs_through_their_environment(tmp_path):
    (tmp_path / "word").write_text("a b$c'\n")
    run = [DOCKER / "with-secrets.sh", "python3", "-c", "import json, os; print(json.dumps(dict(os.environ)))"]
    given = {"PATH": "/usr/bin:/bin", "PLAIN_FILE": "x", "A_WORD__FILE": str(tmp_path / "word")}
    done = subprocess.run(run, env=given, text=True, capture_output=True, check=True)
    seen = json.loads(done.stdout)
    assert seen["A_WORD"] == "a b$c'" and seen["PLAIN_FILE"] == "x" and "A_WORD__FILE" not in seen
    missing = subprocess.run(run, env={**given, "A_WORD__FILE": "/nowhere"}, text=True, capture_output=True)
    assert missing.returncode != 0 and missing.stdout == ""


def test_make_starts_and_ends_the_stack():
    output = subprocess.run(["make", "--dry-run", "up", "down"], cwd=ROOT, text=True, capture_output=True, check=True)
    assert "docker/secrets.sh" in output.stdout
    assert re.findall(r"docker compose .*docker/compose.yaml (\w+)", output.stdout) == ["up", "down"]


def test_make_up_without_the_compose_plugin_says_what_is_needed(tmp_path):
    """Docker without the plugin reports an unknown flag with status 125. A script does the same here."""
    engine = tmp_path / "docker"
    engine.write_text('#!/bin/sh\necho "unknown flag: $2" >&2\nexit 125\n')
    engine.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    output = subprocess.run(["make", "up"], cwd=ROOT, env=environment, text=True, capture_output=True)
    assert output.returncode != 0 and "needs Docker with its compose plugin" in output.stderr
    assert "unknown flag" not in output.stderr and not (DOCKER / "secrets").exists()
