"""Tests of the bill of materials, and of the licences of everything that the lock file names."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from expunge.system.bill import EXCEPTIONS, bill, packages, permits

LOCK = Path(__file__).parents[2] / "requirements.lock"


def test_every_locked_package_is_under_an_allowed_licence():
    found = packages(LOCK)
    assert not [(p.name, p.licence) for p in found if p.installed and not p.allowed]
    assert sum(p.installed for p in found) > 200
    assert set(EXCEPTIONS) <= {p.name for p in found if not permits(p.licence)}, "remove what is no exception any more"


def test_the_bill_names_every_locked_package_with_its_digests():
    made = json.loads(json.dumps(bill(packages(LOCK))))
    components = {c["bom-ref"]: c for c in made["components"]}
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    assert len(components) == len(made["components"])
    text = LOCK.read_text()
    pinned = re.findall(r"^([a-z0-9.-]+)(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE)
    of_lock = {name: c for name, c in components.items() if not name.startswith("torch@")}
    assert len(pinned) > 200 and {*of_lock} == {f"{name}@{version}" for name, version in pinned}
    assert all(c["purl"] == f"pkg:pypi/{name}" and c["properties"] for name, c in of_lock.items())
    assert sum(len(c["properties"]) for c in components.values()) == text.count("--hash=sha256:")


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("GPL-3.0-only OR MIT", True),
        ("GPL-3.0-only AND MIT", False),
        ("MPL-2.0 AND (Apache-2.0 OR GPL-2.0-only)", True),
        ("(MIT OR ISC) AND AGPL-3.0-only", False),
        ("Apache-2.0 WITH LLVM-exception AND BSD-3-Clause", True),
        ("GPL-2.0-only WITH Classpath-exception-2.0", False),
        ("MIT MIT", False),
        ("(MIT", False),
        ("", False),
    ],
)
def test_an_expression_is_allowed_if_one_of_its_choices_is(licence, allowed):
    assert permits(licence) is allowed


def test_a_package_under_another_licence_is_named(tmp_path):
    own = tmp_path / "taken-1.0.dist-info"
    own.mkdir()
    (own / "METADATA").write_text(
        "Metadata-Version: 2.4\nName: taken\nVersion: 1.0\nLicense-Expression: AGPL-3.0-only\n"
    )
    (tmp_path / "lock").write_text(
        f"taken==1.0 \\\n    --hash=sha256:{'0' * 64}\nelsewhere==2 ; sys_platform == 'win32'\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "expunge.system.bill", str(tmp_path / "lock"), "--licences"],
        env={**os.environ, "PYTHONPATH": path},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 1 and "not allowed: taken;" in done.stderr
    assert "taken 1.0: AGPL-3.0-only" in done.stdout and "elsewhere 2: not installed here" in done.stdout
