"""Takes pictures of docs/review.md and the README: `python docs/hooks/pictures.py [FOLDER]`, by default docs/images.

It runs the digits example twice in a temporary workspace, and opens the report and MLflow's own pages in Chromium. With
the mouse it sets the alias `champion` on version 1, which passes the gates of `expunge watch`, and then on version 2,
which is refused because it remembers what version 1 forgot. It fails if either comes out otherwise.
It needs the project's environment, Chromium, and the package playwright, which is no dependency of the project.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parents[1] / "images"
# The last flag keeps the browser from asking other hosts for anything.
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
PORT = 5098  # of MLflow
PATIENCE = 120  # seconds, for a server to answer and for a page to be drawn


def call(home: Path, *command: str) -> None:
    """Run a command in the workspace, which logs into its own store."""
    subprocess.run(command, cwd=home, check=True)


@contextmanager
def running(home: Path, *command: str, log: Path) -> Iterator[None]:
    """Run a command that does not end by itself, and end it with all that it started."""
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=home, stdout=out, stderr=out, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def wait_for_line(log: Path, words: str) -> None:
    end = time.monotonic() + PATIENCE
    while words not in log.read_text():
        if time.monotonic() > end:
            sys.exit(f"{log.name} does not say {words!r}:\n{log.read_text()[-3000:]}")
        time.sleep(0.5)


def open_version(page: Any, url: str, number: int) -> None:
    """Open the page of a version, without MLflow's assistant, which opens by itself at the first visit."""
    page.goto(f"{url}/#/models/expunge-digits-resnet-small/versions/{number}")
    page.reload()  # otherwise MLflow may show what it fetched before
    page.get_by_text("Aliases:").wait_for()
    page.wait_for_timeout(2000)
    assistant = page.get_by_role("button", name="Close", exact=True)
    if assistant.count():
        assistant.click()


def add_tag(page: Any, name: str, value: str) -> None:
    page.get_by_placeholder("Name").fill(name)
    page.get_by_placeholder("Value").fill(value)
    page.get_by_role("button", name="Add", exact=True).last.click()
    page.get_by_role("cell", name=name, exact=True).wait_for()  # the form is empty again


def set_champion(page: Any) -> None:
    """Set the alias `champion` as a reviewer does: the pencil, the name, the button."""
    page.get_by_title("Edit aliases").click()
    page.get_by_role("combobox").last.click()
    page.keyboard.type("champion")
    page.get_by_title("champion", exact=True).click()
    page.get_by_role("button", name="Save aliases").click()


def write(picture: bytes, path: Path) -> None:
    """Write a picture with few colours: a third of the bytes, and it looks the same."""
    from PIL import Image

    Image.open(io.BytesIO(picture)).convert("RGB").quantize(96).save(path, optimize=True)


def take(page: Any, path: Path, height: int, tag: str | None = None) -> None:
    """Write a picture of the page's upper part, without the menu. `tag`: fold the description, scroll to this tag."""
    if tag is not None:
        page.locator("[role=button]").filter(has_text="Description").first.click()
        page.wait_for_timeout(1000)
        page.get_by_text(tag, exact=True).last.scroll_into_view_if_needed()
    left = page.get_by_text("Registered Models", exact=True).first.bounding_box()["x"] - 16
    clip = {"x": left, "y": 0, "width": page.viewport_size["width"] - left, "height": height}
    write(page.screenshot(clip=clip), path)


def pictures(page: Any, home: Path, url: str, images: Path, watch: Path) -> None:
    call(home, "dvc", "repro", "--quiet")
    page.goto((home / "reports/report.html").as_uri())
    write(page.locator(".verdict").screenshot(), images / "report-verdict.png")
    open_version(page, url, 1)
    take(page, images / "registry-version.png", 890)
    add_tag(page, "by", "Ada")
    add_tag(page, "reason", "Review of Friday: answers as retrained models do")
    set_champion(page)
    wait_for_line(watch, "version 1 passes the gates and is the champion")
    open_version(page, url, 1)
    take(page, images / "registry-promoted.png", 690, tag="reason")
    (home / "params.yaml").write_text((home / "params.yaml").read_text().replace("classes: [5]", "classes: [3]"))
    call(home, "dvc", "repro", "--quiet")
    open_version(page, url, 2)
    set_champion(page)
    wait_for_line(watch, "it remembers rows that version 1 had forgotten")
    open_version(page, url, 2)
    take(page, images / "registry-refused.png", 690, tag="not_promoted")


def main() -> None:
    images = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    images.mkdir(parents=True, exist_ok=True)
    os.environ.update(DO_NOT_TRACK="true", DVC_NO_ANALYTICS="1", MLFLOW_DISABLE_TELEMETRY="true")
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("playwright is missing: python -m pip install playwright")
    if (chromium := shutil.which("chromium")) is None:
        sys.exit("chromium is missing: install it, on Debian with `apt-get install chromium`")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        home, logs = Path(folder) / "digits", Path(folder)
        call(logs, "git", "init", "--quiet", home.name)
        call(home, "expunge", "init", "--example", "digits")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1400})
        page.set_default_timeout(PATIENCE * 1000)
        ui = running(home, "expunge", "ui", "--port", str(PORT), log=logs / "ui.log")
        watch = running(home, "expunge", "watch", "--every", "1", log=logs / "watch.log")
        with ui, watch:
            wait_for_line(logs / "ui.log", "Application startup complete")
            pictures(page, home, f"http://127.0.0.1:{PORT}", images, logs / "watch.log")
        browser.close()


if __name__ == "__main__":
    main()
