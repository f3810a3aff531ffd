"""Test the five commands of docs/start.md as they are written there, from a wheel to a registered version.

The test also runs what users do next: flows, variants, documentation, promotion and presets.
"""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
from pathlib import Path

import mlflow
import pytest
import yaml

from tests.pipeline import ENVIRONMENT, ROOT

DOCUMENT = ROOT / "docs" / "start.md"


def commands() -> list[str]:
    (block,) = re.findall(r"^```bash\n(.*?)^```$", DOCUMENT.read_text(), re.DOTALL | re.MULTILINE)
    return block.strip().splitlines()


def test_the_guide_is_five_commands():
    assert len(commands()) == 5 and commands()[0] == "git init"
    assert "--model timm:" in commands()[1] and commands()[2:] == ["expunge check", "dvc repro", "expunge show"]


def test_the_guide_installs_from_a_clone_until_the_package_is_on_an_index():
    """A command such as `pip install expunge` fails today, or installs a package of somebody else."""
    page = DOCUMENT.read_text()
    named = re.findall(r"pip install (?!torch)\"?([^\"`\s]+)", page)
    assert set(named) == {".[models]", "./expunge-0.1.0-py3-none-any.whl[models]"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Return the variables of a virtual environment with the built wheel and without this source tree.

    It also sees the other installed packages.
    """
    home = tmp_path_factory.mktemp("installed")
    outside = {k: v for k, v in ENVIRONMENT.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "MLFLOW_TRACKING_URI")}
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(home / "dist")]
    subprocess.run(build, cwd=ROOT, env=outside, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home / "venv")], check=True)
    python = home / "venv/bin/python"
    (wheel,) = (home / "dist").glob("*.whl")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(python),
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(install, env=outside, check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    # This adds packages only. Python does not read .pth files there, so the editable install of this tree is left out.
    (home / "venv/lib" / version / "site-packages/others.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    tool = home / "venv/bin/dvc"
    tool.write_text(f"#!{python}\nimport sys\nfrom dvc.cli import main\nsys.exit(main())\n")
    tool.chmod(0o755)
    path = f"{home / 'venv/bin'}{os.pathsep}{ENVIRONMENT['PATH']}"
    return {**outside, "PATH": path, "HOME": str(home), "PREFECT_HOME": str(home / "prefect")}


def run(command: str, where: Path, environment: dict[str, str], ok: bool = True) -> str:
    done = subprocess.run(["bash", "-c", command], cwd=where, env=environment, text=True, capture_output=True)
    assert not ok or done.returncode == 0, f"{command}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout + done.stderr


def pictures(folder: Path) -> None:
    """Write scikit-learn's digits as PNG files: each unchanged, shifted to the right, and shifted down.

    With only the 1,797 unchanged ones, two test rows decide whether utility is kept, so the result would depend on the
    machine.
    """
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        grey = np.round(pixels * 255 / 16).astype(np.uint8)
        for j, moved in enumerate((grey, np.roll(grey, 1, axis=1), np.roll(grey, 1, axis=0))):
            Image.fromarray(moved).save(folder / str(label) / f"{i:04}-{j}.png")


@pytest.mark.slow
@pytest.mark.long
def test_from_a_wheel_to_a_registered_version(environment, tmp_path):
    where = run("python -c 'import expunge; print(expunge.__file__)'", tmp_path, environment)
    assert "installed" in where and str(ROOT) not in where
    pictures(tmp_path / "images")
    output = [run(command, tmp_path, environment) for command in commands()]
    assert "Every method beside the original and the retrained model" in output[-1]
    receipt = json.loads((tmp_path / "reports/registration.json").read_text())
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    version = client.get_model_version_by_alias(receipt["model"], "challenger")
    assert version.tags["method"] == receipt["method"] and receipt["method"] is not None

    # dvc.lock holds the dependencies of the stages, and no data are added to git.
    stages = yaml.safe_load((tmp_path / "dvc.lock").read_text())["stages"]
    digests = json.loads((tmp_path / "reports/code.json").read_text())
    assert [dep["path"] for dep in stages["code"]["deps"]] == ["expunge.lock"]
    assert stages["prepare"]["params"]["reports/code.json"] == {"prepare": digests["prepare"]}
    run("git add .", tmp_path, environment)
    names = run("git ls-files", tmp_path, environment).split()
    assert "dvc.lock" in names and not [n for n in names if n.startswith(("images/", "models/", "mlflow"))]
    small = {"reports/metrics", "reports/plots", "reports"}
    assert {str(Path(n).parent) for n in names if n.startswith("reports/")} == small and "reports/outcome.json" in names

    # Flows, variants, documentation pages and promotion work in this workspace as well.
    assert "up to date" in run("dvc status", tmp_path, environment)
    flow = run("python -m flows.unlearn --stages prepare register", tmp_path, environment)
    assert "Completed" in flow and "register" in flow
    run("expunge variant other -S train.seed=2 --target prepare", tmp_path, environment)
    assert (tmp_path / ".expunge/variants/other/data/dataset/manifest.json").is_file()
    assert "Deploy" in run("expunge docs deployment", tmp_path, environment)
    assert "no Prefect server to deploy to" in run("expunge deploy", tmp_path, environment, ok=False)
    run("expunge promote --version 1 --reason tried --yes", tmp_path, environment)
    assert "1" in run("expunge ledger show", tmp_path, environment)

    # The wheel contains the presets of the papers.
    assert "ru-cifar10-class" in run("expunge reproduce --list", tmp_path, environment)
    run("expunge reproduce ru-gaussians", tmp_path, environment)
    assert (tmp_path / ".expunge/reproduce/ru-gaussians/page.md").is_file()
