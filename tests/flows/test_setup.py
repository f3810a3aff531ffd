"""Tests of `expunge deploy`: what it refuses, and which deployments it makes from prefect.yaml."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from tests.pipeline import ENVIRONMENT, ROOT


def deploy(cwd, *arguments, **environment):
    env = {**{k: v for k, v in ENVIRONMENT.items() if not k.startswith("PREFECT_")}, **environment}
    command = [sys.executable, "-m", "expunge.cli", "deploy", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True)


def test_without_a_server_it_says_how_to_get_one(tmp_path):
    done = deploy(ROOT, PREFECT_HOME=str(tmp_path))
    assert done.returncode != 0 and "prefect server start" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(("--name", "Team A", "--repository", "x"), "lower-case letters"), (("--name", "a"), "give its --repository")],
)
def test_names_that_prefect_could_not_keep_apart_are_refused(tmp_path, arguments, said):
    done = deploy(ROOT, *arguments, PREFECT_HOME=str(tmp_path), PREFECT_API_URL="http://127.0.0.1:9/api")
    assert done.returncode == 2 and said in done.stderr


def test_outside_of_a_repository_setup_is_refused(tmp_path):
    done = deploy(tmp_path)
    assert done.returncode == 2 and "flows/ or prefect.yaml is missing" in done.stderr


def test_a_clone_has_names_a_pull_step_and_triggers_of_its_own():
    from flows.setup import APPROVAL, specification

    plain = yaml.safe_load((ROOT / "prefect.yaml").read_text())
    spec = specification("red", "git@host:red.git", "main", "s3://bucket/red")
    assert [d["name"] for d in spec["deployments"]] == [f"red-{d['name']}" for d in plain["deployments"]]
    refresh = spec["pull"][0]["expunge.workspaces.clones.refresh"]
    assert refresh["repository"] == "git@host:red.git" and refresh["directory"].endswith(".expunge/clones/red")
    assert spec["pull"][1]["prefect.deployments.steps.set_working_directory"]["directory"] == "{{ clone.directory }}"
    by_name = {d["name"]: d for d in spec["deployments"]}
    assert by_name["red-nightly"]["parameters"] == {"push": True}
    (trigger,) = by_name["red-promote"]["triggers"]
    assert trigger["match_related"]["prefect.resource.name"] == ["red-pipeline", "red-nightly"]
    # A run that waits for a person must not count for the limit: it would lose its slot when paused, and fail.
    assert APPROVAL in by_name["red-promote"]["tags"] and APPROVAL not in by_name["red-nightly"].get("tags", [])
    assert specification(None, None, "main", None) == plain
