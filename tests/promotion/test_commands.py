"""The commands, on a finished pipeline."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.pipeline import ENVIRONMENT


def expunge(workspace, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "expunge.cli", *arguments]
    return subprocess.run(command, cwd=workspace, env=ENVIRONMENT, text=True, capture_output=True)


def test_from_review_to_ledger(copy):
    registered = json.loads((copy / "reports/registration.json").read_text())
    reviewed = expunge(copy, "review")
    assert reviewed.returncode == 0, reviewed.stderr
    for said in ("original", "challenger: version 1", registered["method"], "forgotten training rows", "retrained"):
        assert said in reviewed.stdout
    assert not (copy / "ledger.jsonl").exists() and not (copy / "data/forgotten").exists()

    asked = subprocess.run(
        [sys.executable, "-m", "expunge.cli", "promote", "--reason", "no"],
        cwd=copy, env=ENVIRONMENT, text=True, capture_output=True, input="n\n",
    )  # fmt: skip
    assert asked.returncode == 1 and not (copy / "ledger.jsonl").exists()

    done = expunge(copy, "promote", "--reason", "as good as retrained [bold]here[/bold]", "--yes")
    assert done.returncode == 0 and "is the champion. Ledger entry 1." in done.stdout, done.stderr
    entry = json.loads((copy / "ledger.jsonl").read_text())
    assert entry["facts"]["request"] == registered["tags"]["request"]
    assert entry["facts"]["seen"]["forget"]["of"] > 0
    shown = expunge(copy, "ledger", "show").stdout
    assert "as good as retrained [bold]here[/bold]" in " ".join(shown.split())
    assert "as the ledger says" in expunge(copy, "audit").stdout

    refused = expunge(copy, "rollback", "--reason", "why")
    assert refused.returncode == 2 and refused.stderr.startswith("error: version 1 is the only champion")
    changed = (copy / "ledger.jsonl").read_text().replace("as good", "as bad")
    (copy / "ledger.jsonl").write_text(changed)
    verified = expunge(copy, "ledger", "verify")
    assert verified.returncode == 2 and "line 1" in verified.stderr


def test_a_higher_level_in_params_refuses(copy):
    from tests.pipeline import change

    change(copy, lambda p: p["register"].update(promote_level="d"))
    refused = expunge(copy, "promote", "--reason", "try", "--yes")
    assert refused.returncode == 2 and "asks for 'd'" in refused.stderr
    assert not (copy / "ledger.jsonl").exists()


def test_export_and_what_is_missing(copy, tmp_path):
    no_champion = expunge(copy, "export", str(tmp_path / "m.pt2"))
    assert no_champion.returncode == 2 and "has no champion" in no_champion.stderr
    written = expunge(copy, "export", "--version", "1", str(tmp_path / "m.pt2"))
    assert written.returncode == 0 and "difference of a logit" in written.stdout, written.stderr
    (copy / "reports/registration.json").unlink()
    assert "nothing was registered here" in expunge(copy, "review").stderr
