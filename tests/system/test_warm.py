"""Tests that a stage in a forked process is like a stage in its own process: what it sees, how it ends, how it dies.

The stages here are small modules of a package `expunge` in the folder of the run, which Python finds first there.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from expunge.system import warm
from tests.pipeline import warm_servers

pytestmark = pytest.mark.skipif(not warm.supported(), reason="this system has no pidfd_open")

SERVER = """
import sys
from expunge.system import warm_server
warm_server.LIBRARIES, warm_server.IDLE = ("json",), float(sys.argv[2])
warm_server.main(warm_server.Path(sys.argv[1]))
"""
CLIENT = """
import sys
from expunge.system import warm
warm.hand_over([sys.executable, *sys.argv[1:]])
print("ran here")
"""
PLACE = "from expunge.system import warm; print(warm.socket_path())"
WAITS = """
import os, pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
pathlib.Path("running.part").write_text(f"{os.getpid()} {child.pid}")
os.rename("running.part", "running")
time.sleep(60)
"""


@pytest.fixture
def environment(run_dir: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name != warm.SWITCH}
    return {**kept, "XDG_RUNTIME_DIR": str(run_dir)}


def python(code: str, *arguments: str, cwd: Path, env: dict[str, str]) -> list[str]:
    done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=cwd, env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.fixture
def server(run_dir: Path, environment: dict[str, str]) -> Iterator[psutil.Popen]:
    """A server that has loaded next to nothing, for processes with `environment`."""
    place = Path(python(PLACE, cwd=run_dir, env=environment)[0])
    process = psutil.Popen([sys.executable, "-c", SERVER, str(place), "60"], cwd="/", env=environment)
    until(lambda: ready(place))
    yield process
    with contextlib.suppress(psutil.NoSuchProcess):
        process.kill()
    process.wait()


def ready(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        try:
            connection.connect(str(place))
            return connection.recv(1) == warm.READY
        except OSError:  # nobody listens, or the server is still loading
            return False


def until(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def heed_signals() -> None:
    """Undo what `nohup` and a shell's `&` do to the tests: the process that asks would ignore these signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def start(tmp_path: Path, run_dir: Path, environment: dict[str, str]) -> Callable[..., subprocess.Popen[str]]:
    """Start a stage with this code in `tmp_path`, as DVC would."""
    script = run_dir / "client.py"
    script.write_text(CLIENT)

    def made(code: str, *arguments: str, name: str = "split", **more: str) -> subprocess.Popen[str]:
        (tmp_path / "expunge/stages").mkdir(parents=True, exist_ok=True)
        for package in ("expunge", "expunge/stages"):
            (tmp_path / package / "__init__.py").touch()
        (tmp_path / f"expunge/stages/{name}.py").write_text(code)
        command = [sys.executable, str(script), "-m", f"expunge.stages.{name}", *arguments]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command, cwd=tmp_path, env={**environment, **more}, text=True, stdin=pipe, stdout=pipe, stderr=pipe,
            preexec_fn=heed_signals,
        )  # fmt: skip

    return made


def test_a_stage_has_the_arguments_folder_environment_and_files_of_the_process_that_asks(server, start, tmp_path):
    code = """
import os, sys
print(sys.argv[1:], os.getcwd(), os.environ["DVC_STAGE"], "ASKED" in os.environ, os.getppid(), input(), __name__)
print(oct(os.umask(0)), sys.path[0] == os.getcwd(), "torch" in sys.modules)
print("to stderr", file=sys.stderr)
"""
    before = os.umask(0o027)
    process = start(code, "one", "--two", DVC_STAGE="split")
    os.umask(before)
    out, err = process.communicate("from stdin\n", timeout=180)
    assert out == (f"['one', '--two'] {tmp_path} split False {server.pid} from stdin __main__\n0o27 True False\n")
    assert err == "to stderr\n" and process.returncode == 0


@pytest.mark.parametrize(
    ("code", "returncode", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('not so')", 1, "not so\n"),
        ("raise ValueError('broken')", 1, "ValueError: broken\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import os; os._exit(7)", 7, ""),
    ],
)
def test_the_process_that_asks_exits_as_the_stage_did(code, returncode, said, server, start):
    process = start(code)
    out, err = process.communicate(timeout=180)
    assert (process.returncode, out) == (returncode, "") and err.endswith(said) and bool(err) == bool(said)


def test_exit_handlers_run_and_output_is_whole(server, start, tmp_path):
    process = start("import atexit; atexit.register(print, 'at the end'); print('x' * 100_000)")
    out, _ = process.communicate(timeout=180)
    assert out == "x" * 100_000 + "\nat the end\n" and process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_that_ends_a_process_ends_its_stage(number, server, start, tmp_path):
    process = start(WAITS)
    until((tmp_path / "running").exists)
    process.send_signal(number)
    assert process.wait(180) == -number
    stage, child = map(int, (tmp_path / "running").read_text().split())
    assert not alive(stage)
    if number == signal.SIGINT:  # as at a terminal, it reaches all
        until(lambda: not alive(child))
    else:  # as without a server: who ends a process does not end its children
        os.kill(child, signal.SIGKILL)
    process.communicate()


def test_a_killed_process_takes_its_stage_with_it(server, start, tmp_path):
    process = start(WAITS)
    until((tmp_path / "running").exists)
    process.kill()
    process.communicate(timeout=180)
    pids = list(map(int, (tmp_path / "running").read_text().split()))
    until(lambda: not any(map(alive, pids)))
    assert start("print('next')").communicate(timeout=180)[0] == "next\n"


def test_a_stage_does_not_outlive_its_server(server, start, tmp_path):
    process = start(WAITS)
    until((tmp_path / "running").exists)
    server.kill()
    _, err = process.communicate(timeout=180)
    assert process.returncode == 1 and "run the command again" in err
    pids = list(map(int, (tmp_path / "running").read_text().split()))
    until(lambda: not any(map(alive, pids)))


def test_stages_run_at_once(server, start, tmp_path):
    code = """
import pathlib, sys, time
pathlib.Path(sys.argv[1]).touch()
while not pathlib.Path(sys.argv[2]).exists():
    time.sleep(0.01)
"""
    one, two = start(code, "a", "b"), start(code, "b", "a")
    assert [process.wait(180) for process in (one, two)] == [0, 0]
    for process in (one, two):
        process.communicate()


def test_any_stage_is_handed_over_unless_it_is_switched_off(server, start, environment, tmp_path):
    assert start("print('there')").communicate(timeout=180)[0] == "there\n"
    assert start("print('there')", name="train").communicate(timeout=180)[0] == "there\n"
    assert start("print('there')", **{warm.SWITCH: "0"}).communicate(timeout=180)[0] == "ran here\n"


STAGE_OF_DVC = """
stages:
  one:
    cmd: grep PPid /proc/$PPID/status > parent; echo $$ > part; mv part running; exec sleep 60
"""


def dvc_command(*arguments: str, cwd: Path, env: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "expunge.system.dvc_command", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=cwd, env=env, text=True, preexec_fn=heed_signals, **pipes)


def test_a_command_of_dvc_is_handed_over_and_an_interrupt_reaches_its_stage(server, environment, tmp_path):
    quiet = {**environment, "DVC_NO_ANALYTICS": "1"}
    started = dvc_command("init", "--no-scm", "--quiet", cwd=tmp_path, env=quiet)
    assert started.communicate(timeout=180)[0] == "" and started.returncode == 0
    (tmp_path / "dvc.yaml").write_text(STAGE_OF_DVC)
    process = dvc_command("repro", cwd=tmp_path, env=quiet)
    until((tmp_path / "running").exists)
    assert (tmp_path / "parent").read_text() == f"PPid:\t{server.pid}\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=180)
    assert process.returncode not in (0, None) and "failed to reproduce 'one'" in out
    assert not alive(int((tmp_path / "running").read_text()))


def test_a_command_of_dvc_runs_itself_without_a_server_and_starts_none(run_dir, environment, tmp_path):
    process = dvc_command("root", cwd=tmp_path, env=environment)
    assert "not inside of a DVC repository" in process.communicate(timeout=180)[0] and process.returncode != 0
    place = Path(python(PLACE, cwd=run_dir, env=environment)[0])
    assert not place.exists() and not place.with_suffix(".lock").exists()


def test_without_a_server_a_stage_runs_itself_and_starts_one(start, run_dir, environment):
    """The server loads the real libraries here. Its lock exists as soon as it has begun."""
    assert start("print('there')").communicate(timeout=180)[0] == "ran here\n"
    place = Path(python(PLACE, cwd=run_dir, env=environment)[0])
    until(place.exists)
    found = warm_servers(place)
    assert [process.cmdline()[1:3] for process in found] == [["-m", "expunge.system.warm_server"]]
    assert start("print('there')").communicate(timeout=180)[0] in ("ran here\n", "there\n")
    found[0].kill()


def test_a_dead_server_is_replaced(server, start, run_dir, environment):
    server.kill()
    server.wait()
    place = Path(python(PLACE, cwd=run_dir, env=environment)[0])
    assert place.exists() and not ready(place)
    assert start("print('there')").communicate(timeout=180)[0] == "ran here\n"
    until(lambda: warm_servers(place))
    for process in warm_servers(place):
        process.kill()


def test_a_server_ends_when_idle_and_a_second_one_at_once(server, run_dir, environment):
    place = Path(python(PLACE, cwd=run_dir, env=environment)[0])
    second = subprocess.run([sys.executable, "-c", SERVER, str(place), "60"], env=environment, timeout=180)
    assert second.returncode == 0 and ready(place)
    other = place.with_name("other")
    subprocess.run([sys.executable, "-c", SERVER, str(other), "0.1"], env=environment, timeout=180, check=True)
    assert not other.exists()


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"DVC_STAGE": "fit"}, True),
        ({"EXPUNGE_X": "1"}, True),
        ({"KMP_INIT_AT_FORK": "FALSE"}, True),
        ({"OMP_NUM_THREADS": "7"}, False),
        ({"X": "1"}, False),
    ],
)
def test_processes_share_a_server_only_if_a_fork_would_be_like_them(change, same, run_dir, environment):
    places = [python(PLACE, cwd=run_dir, env=env) for env in (environment, {**environment, **change})]
    assert (places[0] == places[1]) == same


def test_another_priority_or_file_limit_has_another_server(run_dir, environment):
    found = {
        tuple(python(before + PLACE, cwd=run_dir, env=environment))
        for before in ("", "import os; os.nice(1)\n", "import resource as r; r.setrlimit(r.RLIMIT_NOFILE, (99, 99))\n")
    }
    assert len(found) == 3


def test_a_folder_that_others_can_enter_is_not_used(start, run_dir, environment):
    home = run_dir / f"expunge-{os.getuid()}"
    home.mkdir(mode=0o755)
    assert start("print('there')").communicate(timeout=180)[0] == "ran here\n"
    assert not list(home.iterdir())


@pytest.mark.slow
def test_the_libraries_can_be_imported_and_leave_one_thread():
    code = """
import importlib, threading
from expunge.system import warm_server
for name in warm_server.LIBRARIES:
    importlib.import_module(name)
assert warm_server.alone(), threading.enumerate()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_server_is_started_in_advance_once_and_not_where_it_is_turned_off(run_dir, environment):
    """A flow does this while it still checks params."""
    place = Path(python(PLACE, cwd=run_dir, env=environment)[0])
    command = [sys.executable, "-m", "expunge.system.warm"]
    subprocess.run(command, cwd=run_dir, env={**environment, warm.SWITCH: "0"}, check=True)
    assert not place.exists() and not place.with_suffix(".lock").exists()
    subprocess.run(command, cwd=run_dir, env=environment, check=True)
    until(lambda: ready(place))
    found = warm_servers(place)
    subprocess.run(command, cwd=run_dir, env=environment, check=True)
    assert [process.pid for process in warm_servers(place)] == [process.pid for process in found] and len(found) == 1
    found[0].kill()
