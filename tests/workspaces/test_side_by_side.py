"""Stages of one workspace run side by side, and end with what `dvc repro` ends with."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml
import zc.lockfile

from expunge.system import dvc
from expunge.system.errors import ConfigError, DataError, ExpungeError
from expunge.workspaces.side_by_side import Here, reproduce, threads_for
from tests.pipeline import ENVIRONMENT, ROOT, lay_out, lay_out_short
from tests.stages.test_kill import stable

# `many` meet: each of them waits for the other, so they end only if both run at once.
MEETING = """
stages:
  first: {cmd: cp given.txt first, deps: [given.txt], outs: [first]}
  many:
    matrix: {n: [1, 2]}
    cmd:
    - touch here-${item.n}
    - timeout 60 sh -c 'until test -e here-1 -a -e here-2; do sleep 0.1; done'
    - cp first many-${item.n}
    deps: [first]
    outs: ["many-${item.n}"]
  last: {cmd: cat many-1 many-2 > last, deps: [many-1, many-2], outs: [last]}
"""


def workspace(place: Path, pipeline: str) -> Path:
    place.mkdir(exist_ok=True)
    dvc.run("init", "--no-scm", "--quiet", root=place)
    (place / "dvc.yaml").write_text(pipeline)
    (place / "given.txt").write_text("given")
    dvc.run("add", "given.txt", root=place)
    return place


def locked(place: Path) -> dict:
    """Return dvc.lock. New entries stand in the order in which stages ended."""
    return yaml.safe_load((place / "dvc.lock").read_text())


def written(place: Path) -> dict:
    """Return the digests of what stages wrote, without what holds times, as folders of fits do."""
    return {name: stage["outs"] for name, stage in stable(place).items()}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "expunge.cli", "repro", *arguments]


def expunge_repro(place: Path, *arguments: str) -> str:
    done = subprocess.run(command(*arguments), cwd=place, env=ENVIRONMENT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_what_does_not_depend_on_each_other_runs_at_once_and_dvc_records_it(tmp_path, capfd):
    place = workspace(tmp_path, MEETING)
    reproduce(place, [], 2, Here(place, 1))
    assert dvc.query("state", place)["stale"] == {}
    side_by_side = locked(place)
    lines = capfd.readouterr().out.splitlines()
    assert lines.index("last: starts") > max(n for n, line in enumerate(lines) if line.startswith("many@"))
    (place / "dvc.lock").unlink()
    dvc.run("repro", "--force", root=place)
    assert locked(place) == side_by_side
    reproduce(place, [], 2, Here(place, 1))
    assert "starts" not in capfd.readouterr().out
    (place / "given.txt").write_text("changed")
    reproduce(place, ["many@2"], 2, Here(place, 1))
    started = re.findall("^(.+): starts", capfd.readouterr().out, re.M)
    assert started == ["given.txt.dvc", "first", "many@2"] and (place / "many-2").read_text() == "changed"
    assert set(dvc.query("state", place)["stale"]) == {"many@1", "last"}


@pytest.mark.slow
def test_many_stages_that_end_at_once_are_all_recorded(tmp_path):
    place = workspace(tmp_path, "")
    for number in range(2):
        text = "stages:\n  many:\n    matrix: {n: [1, 2, 3, 4, 5, 6, 7, 8]}\n"
        text += f'    cmd: echo {number} > out-${{item.n}}\n    outs: ["out-${{item.n}}"]\n'
        (place / "dvc.yaml").write_text(text)
        reproduce(place, [], 8, Here(place, 1))
        assert set(locked(place)["stages"]) == {f"many@{n}" for n in range(1, 9)}
        assert dvc.query("state", place)["stale"] == {}


@pytest.mark.slow
def test_a_stage_that_ends_while_others_hold_the_lock_is_recorded(tmp_path):
    """DVC itself gives up after three seconds, and the result of the stage is lost."""
    place = workspace(tmp_path, "stages: {one: {cmd: touch begun; sleep 1; echo 1 > one, outs: [one]}}")

    def hold() -> None:
        while not (place / "begun").exists():
            time.sleep(0.05)
        lock = zc.lockfile.LockFile(str(place / ".dvc/tmp/lock"))
        time.sleep(6)
        lock.close()

    holder = threading.Thread(target=hold)
    holder.start()
    engine = Here(place, 1)
    assert any("Updating lock file" in line for line in engine.lines("one"))
    holder.join()
    assert set(locked(place)["stages"]) == {"one"}


FAILING = """
stages:
  bad: {cmd: "test -e repaired && touch bad", outs: [bad]}
  good: {cmd: "sleep 3; touch good", outs: [good]}
  after: {cmd: touch after, deps: [bad], outs: [after]}
"""


@pytest.mark.slow
def test_if_a_stage_fails_the_others_end_and_are_kept(tmp_path, capfd):
    place = workspace(tmp_path, FAILING)
    with pytest.raises(ExpungeError, match=r"failed: bad; .* run `expunge repro` again"):
        reproduce(place, [], 2, Here(place, 1))
    out = capfd.readouterr().out
    assert "bad: ERROR: failed to reproduce 'bad'" in out and "good: done" in out and "after: starts" not in out
    assert set(locked(place)["stages"]) == {"good"}
    (place / "repaired").touch()
    reproduce(place, [], 2, Here(place, 1))
    assert "good: starts" not in capfd.readouterr().out
    assert set(locked(place)["stages"]) == {"bad", "good", "after"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the stages of a killed run go on")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_stages_end_with_the_run(tmp_path, number):
    """The signal reaches one process only; at a terminal Ctrl-C reaches all of them.

    Without SHELL, as under cron, DVC would use /bin/sh, which on Debian starts a stage as a child of its own.
    """
    (tmp_path / "long.py").write_text("import expunge.stages, sys, time; open(sys.argv[1], 'w'); time.sleep(600)")
    pipeline = 'stages: {long: {matrix: {n: [1, 2]}, cmd: "python long.py ${item.n}", outs: ["out-${item.n}"]}}'
    place = workspace(tmp_path, pipeline)
    env = {name: value for name, value in ENVIRONMENT.items() if name != "SHELL"}
    run = subprocess.Popen(command(), cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not all((place / name).exists() for name in "12"):
        assert run.poll() is None
        time.sleep(0.2)
    stages = psutil.Process(run.pid).children(recursive=True)
    run.send_signal(number)
    assert run.wait(timeout=30) != 0
    assert not psutil.wait_procs(stages, timeout=30)[1]


def test_the_cores_are_divided_unless_threads_are_given(monkeypatch):
    monkeypatch.setattr("expunge.workspaces.side_by_side.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [threads_for(jobs) for jobs in (1, 2, 3, 16)] == [8, 4, 2, 1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_for(2) == 3


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    from expunge.commands.repro import repro

    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="add --engine ray"):
        repro(address="127.0.0.1:6379")
    with pytest.raises(DataError, match=r"dvc plan failed: .*not inside of a DVC repository"):
        repro()
    params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
    params["extract"]["engine"] = "ray"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ConfigError, match=r"set extract\.engine: local"):
        repro(engine="ray")
    params["extract"]["engine"] = "local"
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    with pytest.raises(ConfigError, match=r"--address: no Ray cluster answers at '127\.0\.0\.1:1'"):
        repro(engine="ray", address="127.0.0.1:1")


@pytest.mark.slow
def test_the_pipeline_ends_with_the_same_bytes(finished, tmp_path):
    place = lay_out(tmp_path / "workspace")
    out = expunge_repro(place, "--jobs", "2")
    assert "everything is up to date" in out
    assert written(place) == written(finished)
    assert json.loads(dvc.run("status", "--json", root=place)) == {}


@pytest.mark.slow
def test_tasks_of_ray_end_with_the_same_bytes_although_a_worker_is_killed(short, tmp_path):
    pytest.importorskip("ray")
    place = lay_out_short(tmp_path / "workspace")
    worker, killed, lines = 0, 0, []
    pipes = {"text": True, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command("--engine", "ray"), cwd=place, env=ENVIRONMENT, **pipes) as run:
        for line in run.stdout:
            lines.append(line)
            if found := re.match(r"retrain@1: runs on .*, process (\d+)$", line):
                worker = int(found[1])
            if not killed and line.startswith("retrain@1: > python"):
                killed = worker
                os.kill(killed, signal.SIGKILL)
    assert run.returncode == 0, "".join(lines)[-3000:]
    assert killed and "retrain@1: its worker was lost" in "".join(lines)
    assert written(place) == written(short)
    assert json.loads(dvc.run("status", "--json", root=place)) == {}
