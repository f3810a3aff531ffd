"""Test the commands that review, promote, export and score versions on the workspace of a finished pipeline."""

from __future__ import annotations

import getpass
import io
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from mlflow import MlflowClient
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.promotion.review import in_words
from tests.pipeline import change


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def expunge(copy, monkeypatch, capsys) -> Callable[..., Done]:
    """Return a function that runs a command in this process, since a new process imports torch and MLflow again."""
    from expunge.cli import main

    monkeypatch.chdir(copy)
    # MLflow caches stores by their address, so with a relative address every test would get the first test's store.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy / 'mlflow.db'}")

    def run(*arguments: str, answer: str = "") -> Done:
        monkeypatch.setattr(sys, "argv", ["expunge", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
        with pytest.raises(SystemExit) as ended:
            main()
        return Done(int(ended.value.code or 0), *capsys.readouterr())

    return run


def test_review_promote_and_rollback_end_in_the_ledger(copy, expunge):
    registered = json.loads((copy / "reports/registration.json").read_text())
    reviewed = expunge("review")
    assert reviewed.status == 0, reviewed.err
    for words in ("original", "challenger: version 1", registered["method"], "forgotten training rows", "retrained"):
        assert words in reviewed.out
    assert not (copy / "ledger.jsonl").exists() and not list((copy / "data/forgotten").glob("*.rows"))
    as_json = json.loads(expunge("review", "--json").out)
    assert as_json["passes"] and as_json["champion"] is None and as_json["challenger"]["forgets"] == "5"
    assert as_json["same_rows"]["forget"]["of"] > 0 and json.loads(expunge("audit", "--json").out)["findings"] == []
    page = (copy / "reports/review.html").read_text()
    assert "challenger: version 1 (forgets 5) beside original" in page and "passes the gates" in page
    assert "reports/review.html" in reviewed.out and 'src="http' not in page

    asked = expunge("promote", "--reason", "no", answer="n\n")
    assert asked.status == 1 and not (copy / "ledger.jsonl").exists()

    done = expunge("promote", "--reason", "good [bold]enough[/bold]", "--yes")
    assert done.status == 0 and "is the champion. Ledger entry 1." in done.out, done.err
    entry = json.loads((copy / "ledger.jsonl").read_text())
    assert entry["facts"]["request"] == registered["tags"]["request"]
    assert entry["facts"]["seen"]["forget"]["of"] > 0
    client = MlflowClient(f"sqlite:///{copy / 'mlflow.db'}")
    run = client.get_model_version(registered["model"], "1").run_id
    # The page that the reviewer saw is also an artifact of the run, so MLflow shows it.
    assert "review.html" in {f.path for f in client.list_artifacts(run)}
    assert entry["facts"]["who"] == getpass.getuser()
    shown = expunge("ledger", "show").out
    assert "good [bold]enough[/bold]" in shown
    assert "as the ledger says" in expunge("audit").out and json.loads(expunge("audit", "--json").out)["clock"] == []

    refused = expunge("rollback", "--reason", "why")
    assert refused.status == 2 and refused.err.startswith("error: version 1 is the only champion")
    changed = (copy / "ledger.jsonl").read_text().replace("good", "bad")
    (copy / "ledger.jsonl").write_text(changed)
    verified = expunge("ledger", "verify")
    assert verified.status == 2 and "line 1" in verified.err


def test_gates_in_a_review_have_the_names_of_their_metrics():
    shown = in_words("divergence.forget.kl, representation.probe_z")
    assert shown == "KL from the retrained model on forgotten rows, nats; linear probe on z"
    assert [in_words(tag) for tag in ("none", "not evaluated", "–")] == ["none", "not evaluated", "–"]


def test_preflight_says_what_it_checked(copy, expunge):
    done = expunge("preflight")
    assert done.status == 0 and "the ledger's chain of 0 entries is whole" in done.out and "takes runs" in done.out


def test_promotion_is_refused_where_params_ask_for_a_claim_that_was_not_shown(copy, expunge):
    change(copy, lambda p: p["register"].update(promote_level="exact"))
    refused = expunge("promote", "--reason", "try", "--yes")
    assert refused.status == 2 and "asks for 'exact'" in refused.err
    assert not (copy / "ledger.jsonl").exists()


@pytest.mark.slow
def test_export_writes_a_version_and_a_missing_champion_or_registration_is_named(copy, expunge, tmp_path):
    no_champion = expunge("export", str(tmp_path / "m.pt2"))
    assert no_champion.status == 2 and "has no champion" in no_champion.err
    written = expunge("export", "--version", "1", str(tmp_path / "m.pt2"))
    assert written.status == 0 and "difference of a logit" in written.out, written.err
    (copy / "reports/registration.json").unlink()
    assert "nothing was registered here" in expunge("review").err


@pytest.mark.slow
def test_a_version_is_reviewed_and_promoted_when_the_workspace_works_on_another_request(copy, expunge):
    """Version 1 forgot class 5. data/split is written for class 3 first, and removed later."""
    from expunge.stages import split

    expected = json.loads(expunge("review", "--json").out)["same_rows"]
    change(copy, lambda p: p["split"].update(classes=[3]))
    split.main()
    seen = json.loads(expunge("review", "--version", "1", "--json").out)
    assert seen["passes"] and seen["challenger"]["forgets"] == "5" and seen["same_rows"] == expected
    shutil.rmtree(copy / "data/split")
    shown = expunge("review", "--version", "1").out
    assert "forgotten training rows: 5" in shown and "passes the gates" in shown
    (copy / "data/forgotten").rename(copy / "data/aside")
    refused = expunge("promote", "--version", "1", "--reason", "unknown rows", "--yes")
    assert refused.status == 2 and "is not known here" in refused.err
    shutil.rmtree(copy / "data/forgotten", ignore_errors=True)
    (copy / "data/aside").rename(copy / "data/forgotten")
    assert expunge("promote", "--version", "1", "--reason", "any time", "--yes").status == 0
    assert "as the ledger says" in expunge("audit").out


def test_the_alias_moved_in_the_ui_is_gated_by_watch(copy, expunge):
    name = json.loads((copy / "reports/registration.json").read_text())["model"]
    client = MlflowClient()
    client.set_model_version_tag(name, "1", "reason", "clicked on Friday")
    client.set_registered_model_alias(name, "champion", "1")
    done = expunge("watch", "--once")
    assert done.status == 0 and f"{name}: version 1 passes the gates and is the champion" in done.out, done.err
    assert "clicked on Friday" in expunge("ledger", "show").out and expunge("audit").status == 0
    assert expunge("watch", "--once", "--model", name).out == ""


def test_a_parquet_file_is_scored_by_a_version(copy, expunge):
    images = Dataset("data/dataset").images(np.arange(5))
    content = [_png(image[..., 0]) for image in images]
    pq.write_table(pa.table({"image": content, "sample_id": [f"{i}" for i in range(5)]}), copy / "in.parquet")
    done = expunge("predict", "in.parquet", "out.parquet", "--version", "1")
    assert done.status == 0 and "out.parquet: 5 rows, scored with models:/" in done.out, done.err
    assert pq.read_table(copy / "out.parquet")["sample_id"].to_pylist() == [f"{i}" for i in range(5)]
    missing = expunge("predict", "in.parquet", "out.parquet")
    assert missing.status == 2 and "has no champion" in missing.err


def _png(image) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, format="PNG")
    return out.getvalue()
