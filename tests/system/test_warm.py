"""Commands that are forked from a process that has imported already: they must not be told from new processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from expunge.system import dvc
from expunge.system.warm import interpreter, python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere commands start as ever")
# Named so that it is served; `colorsys` stands for what is imported beforehand.
PROBE = """
import json, os, sys, threading, time
what = sys.argv[1]
if what == "look":
    said = {"argv": sys.argv[1:], "cwd": os.getcwd(), "env": os.environ.get("PROBE"), "stdin": sys.stdin.read(),
            "main": __name__, "path": sys.path[0], "threads": threading.active_count()}
    print(json.dumps({**said, "warm": "colorsys" in sys.modules}))
    print("aside", file=sys.stderr)
elif what == "exit":
    sys.exit(int(sys.argv[2]))
elif what == "raise":
    raise ValueError("on purpose")
elif what == "die":
    os.kill(os.getpid(), 15)
elif what == "wait":
    print(os.getpid(), flush=True)
    time.sleep(60)
"""


@pytest.fixture
def place(tmp_path) -> Path:
    (tmp_path / "dvcprobe.py").write_text(PROBE)
    return tmp_path


def command(*arguments: str) -> list[str]:
    return [python(), "-m", "dvcprobe", *arguments]


def run(place: Path, *arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=place, text=True, capture_output=True, input="given", env={**os.environ, **(env or {})}
    )


def wait_until(true) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("it did not come about in 10 s")


def ready() -> bool:
    return Path(python()).with_name("socket").exists()


def test_a_command_is_as_if_started_anew(place):
    cold = run(place, "look", "a b", env={"PROBE": "1"})
    assert python() == sys.executable
    with interpreter(["colorsys", "no_such_module"]):
        wait_until(ready)
        warm = run(place, "look", "a b", env={"PROBE": "1"})
        other = run(place, "look", env={"PYTHONPATH": str(place)})  # other code: not what was imported
        assert dvc.environment()["PATH"].split(os.pathsep)[0] == str(Path(python()).parent)
    said, expected = json.loads(warm.stdout), json.loads(cold.stdout)
    assert said.pop("warm") is True and expected.pop("warm") is False and json.loads(other.stdout)["warm"] is False
    assert said == expected and warm.stderr == cold.stderr == "aside\n"
    assert python() == sys.executable


@pytest.mark.parametrize(("arguments", "code"), [(("exit", "0"), 0), (("exit", "7"), 7), (("raise",), 1)])
def test_it_ends_as_the_command_ends(arguments, code, place):
    with interpreter([]):
        wait_until(ready)
        done = run(place, *arguments)
        assert done.returncode == code
        assert ("ValueError: on purpose" in done.stderr) == (arguments[0] == "raise")
        assert run(place, "die").returncode == 128 + signal.SIGTERM


def test_a_command_ends_with_whoever_started_it(place):
    with interpreter([]):
        wait_until(ready)
        started = subprocess.Popen(command("wait"), cwd=place, stdout=subprocess.PIPE, text=True)
        pid = int(started.stdout.readline())
        started.kill()
        started.wait()
        wait_until(lambda: not Path(f"/proc/{pid}").exists())


def test_the_waiting_process_ends_with_a_run_that_is_killed_while_it_imports(place):
    """It holds none of the run's pipes either: whoever reads them comes to their end."""
    (place / "dvcslow.py").write_text("import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(2)\n")
    code = (
        "import time; from expunge.system.warm import interpreter, python\n"
        "with interpreter(['dvcslow']): python(); time.sleep(60)"
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    started = subprocess.Popen([sys.executable, "-c", code], cwd=place, **pipes)
    wait_until(lambda: (place / "pid").exists() and (place / "pid").read_text())
    started.kill()
    started.communicate(timeout=1.5)  # while it still imports
    waiting = Path("/proc", (place / "pid").read_text())
    wait_until(lambda: not waiting.exists())


def test_without_the_waiting_process_it_is_the_real_one(place):
    with interpreter(["colorsys"]):
        wait_until(ready)
        Path(python()).with_name("socket").unlink()
        assert json.loads(run(place, "look").stdout)["warm"] is False
        other = subprocess.run([python(), "-c", "print(6 * 7)"], capture_output=True, text=True)
        assert other.stdout == "42\n"


@pytest.mark.slow
def test_what_a_run_imports_beforehand_starts_no_thread():
    """A fork copies one thread, and the locks of the others as they were."""
    code = (
        "import importlib, threading; from expunge.commands.request import WARM\n"
        "for name in WARM: importlib.import_module(name)\n"
        "print([t.name for t in threading.enumerate()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "['MainThread']\n", done.stdout + done.stderr[-2000:]
