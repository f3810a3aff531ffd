"""npm packages are fetched once and checked, by the real npm client from a local registry of one package."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from expunge.data.packages import fetch_npm, unpack_debian
from expunge.system.errors import DataError
from expunge.system.files import sha256

NAME, VERSION = "made-pictures", "1.2.3"


def archive() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, content in {
            "package/package.json": json.dumps({"name": NAME, "version": VERSION}).encode(),
            "package/a.txt": b"a",
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return out.getvalue()


class Registry(http.server.BaseHTTPRequestHandler):
    content = archive()
    asked: list[str]

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        base = f"http://127.0.0.1:{self.server.server_port}"  # type: ignore[attr-defined]
        integrity = "sha512-" + base64.b64encode(hashlib.sha512(self.content).digest()).decode()
        version = {"name": NAME, "version": VERSION, "dist": {"tarball": f"{base}/a.tgz", "integrity": integrity}}
        answers = {
            f"/{NAME}": json.dumps({"name": NAME, "versions": {VERSION: version}, "dist-tags": {"latest": VERSION}}),
            "/a.tgz": self.content,
        }
        body = answers.get(self.path)
        self.send_response(404 if body is None else 200)
        self.end_headers()
        self.wfile.write(body.encode() if isinstance(body, str) else body or b"{}")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Serve a registry and yield the list of the paths that were requested."""
    if not shutil.which("npm"):
        pytest.skip("no npm")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Registry) as server:
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
        monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm-cache"))
        monkeypatch.setenv("npm_config_fetch_retries", "0")
        for proxy in ("npm_config_proxy", "npm_config_https_proxy", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(proxy, raising=False)
        yield server.asked  # type: ignore[attr-defined]
        server.shutdown()


def test_an_npm_package_is_fetched_once(tmp_path: Path, registry: list[str]) -> None:
    digest = hashlib.sha256(Registry.content).hexdigest()
    for _ in range(2):
        file = fetch_npm(NAME, VERSION, digest, tmp_path / "cache")
        assert file == tmp_path / "cache" / f"{NAME}-{VERSION}.tgz" and sha256(file) == digest
    assert registry.count("/a.tgz") == 1
    assert list((tmp_path / "cache").iterdir()) == [file]


def test_a_cut_npm_archive_is_fetched_anew(tmp_path: Path, registry: list[str]) -> None:
    cut = tmp_path / "cache" / f"{NAME}-{VERSION}.tgz"
    cut.parent.mkdir()
    cut.write_bytes(Registry.content[:50])
    assert fetch_npm(NAME, VERSION, hashlib.sha256(Registry.content).hexdigest(), cut.parent) == cut
    assert cut.read_bytes() == Registry.content


def test_an_npm_package_with_other_content_is_refused(tmp_path: Path, registry: list[str]) -> None:
    with pytest.raises(DataError, match=f"{NAME} {VERSION} has sha256 {sha256_of(Registry.content)}, but"):
        fetch_npm(NAME, VERSION, "00", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_npm_package_that_does_not_exist_is_refused(tmp_path: Path, registry: list[str]) -> None:
    with pytest.raises(DataError, match=r"npm pack no-such-pictures@1\.2\.3"):
        fetch_npm("no-such-pictures", VERSION, "00", tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_npm_or_apt_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        DataError, match=r"npm is not installed; install npm, or download the package to .*made-pictures-1\.2\.3\.tgz"
    ):
        fetch_npm(NAME, VERSION, "00", tmp_path / "cache")
    with pytest.raises(DataError, match="apt-get and dpkg are not installed"):
        unpack_debian(["made"], tmp_path)


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
