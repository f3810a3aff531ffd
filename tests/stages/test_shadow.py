"""Test the stage `shadow` in a finished pipeline.

It is off by default, refuses attacks that are not valid, and trains heads or whole networks. Networks are trained
further after a kill.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from expunge.config import Model, Shadow, load_config
from expunge.core import LinearHead, identity
from expunge.data.dataset import Dataset
from expunge.data.split import Split
from expunge.evaluation.ulira import margins
from expunge.methods.unlearned import UnlearnedModel
from expunge.models.checkpoint import load_classifier
from expunge.shadow import plan
from expunge.shadow.heads import FittedEntry
from expunge.shadow.networks import Job, make_member
from tests.pipeline import ENVIRONMENT, change, stage


def report(workspace):
    return json.loads((workspace / "reports" / "shadow.json").read_text())


def run(workspace, *arguments):
    result = stage(workspace, *(arguments or ("shadow",)))
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stderr


def model(training, saw, shards=1):
    return Model("resnet-small", training, None, shards, 1, 0, None, None, None, None, saw)


@pytest.mark.parametrize(
    "training, saw, heads, networks, kind, words",
    [
        ("full", True, 0, 0, "off", None),
        ("head", False, 0, 0, "off", None),
        ("head", False, 8, 0, "heads", "never saw the forgotten rows"),
        ("none", False, 8, 4, "heads", "never saw the forgotten rows"),
        ("head", False, 0, 4, "refused", "trains no network"),
        ("full", True, 8, 0, "refused", "backbone saw these rows"),
        ("full", True, 0, 4, "networks", "trained from its start"),
        ("head", True, 8, 0, "refused", "backbone saw these rows"),
        ("head", True, 0, 4, "refused", "share a backbone that saw"),
        ("above", False, 8, 4, "refused", "layers above model.cut were trained on these"),
    ],
)
def test_the_plan_says_which_attack_is_valid_and_why(training, saw, heads, networks, kind, words):
    decided = plan(model(training, saw), Shadow(heads, networks, None, 0))
    assert decided.kind == kind
    reason = decided.valid_because or decided.refused_because
    assert reason is None if words is None else words in reason


def test_heads_in_shards_get_no_shadow_models():
    decided = plan(model("ridge", False, shards=4), Shadow(8, 0, None, 0))
    assert decided.kind == "refused" and "trained on all people at once" in decided.refused_because


def test_whole_networks_do_not_make_heads_valid():
    decided = plan(model("full", True), Shadow(8, 4, None, 0))
    assert decided.kind == "networks" and "backbone saw these rows" in decided.refused_because


def test_shadow_models_are_off_by_default(finished):
    assert report(finished) == {"kind": "off"}
    summary = json.loads((finished / "reports" / "summary.json").read_text())
    assert summary["shadow"] == {"kind": "off"}
    assert not [name for name, block in summary["methods"].items() if "shadow" in block]


def test_any_map_is_put_before_every_head_unless_the_method_changed_the_head_as_well():
    """This holds for methods of other packages, too."""
    original = LinearHead(torch.ones(3, 2), torch.zeros(3))
    moved = LinearHead(torch.ones(3, 2), torch.tensor([0.0, 0.0, -1.0]))
    table = {"a-map": {"method": "of-another-package"}}
    kept = FittedEntry.of("a-map", table, UnlearnedModel(identity(2), original), original)
    changed = FittedEntry.of("a-map", table, UnlearnedModel(identity(2), moved), original)
    assert kept.why_not is None and kept.unlearned_by == "the map of this run before every head"
    assert changed.unlearned_by is None and "step on the head" in changed.why_not


def test_heads_on_a_backbone_that_saw_the_rows_are_refused_and_the_table_says_so(copy):
    change(copy, lambda p: p["shadow"].update(heads=8))
    assert "refused" in run(copy)
    assert report(copy)["kind"] == "refused"
    run(copy, "compare")
    assert "Refused: heads on its features cannot stand for models" in (copy / "reports" / "results.md").read_text()


@pytest.mark.slow
def test_shadow_heads_attack_methods_that_change_only_head_or_map(copy):
    """If params.yaml says that the backbone never saw the rows, methods that change only head or map are attacked."""

    def edit(p):
        p["model"].update(training="head", saw_forget_data=False)
        p["methods"] = ["logit-mask", "ru-linear", "pour-p", "head-refit", "relearn-stage2", "loft"]
        p["fit"]["loft"] = {"rank": 1, "solver": "exact"}  # one direction ruins the model, so the fit is refused
        p["shadow"].update(heads=32)

    change(copy, edit)
    for name in ("pour-p", "head-refit", "relearn-stage2", "loft"):
        run(copy, "fit", name)
    run(copy)
    first, found = (copy / "reports" / "shadow.json").read_bytes(), report(copy)
    assert found["kind"] == "heads" and found["models"]["had_each_row"] == 16
    assert found["references"]["original"]["ulira"]["auc"] > 0.9
    # With 146 rows and one model, the AUC is off by a tenth by chance. Models that had the rows are far above.
    assert found["references"]["retrained"]["ulira"]["auc"] == pytest.approx(0.5, abs=0.15)
    # If the backbone never saw the forgotten rows, refitting the head on the retained rows is retraining.
    refit = found["methods"]["head-refit"]
    assert refit["ulira"]["auc"] == pytest.approx(0.5, abs=0.15)
    assert refit["klom"]["p50"] == pytest.approx(found["references"]["retrained"]["klom"]["p50"], rel=0.3)
    # No retrained model gives such logits, so the attack recognises the mask.
    assert found["methods"]["logit-mask"]["ulira"]["auc"] > 0.99
    assert found["methods"].keys() == {"logit-mask", "ru-linear", "pour-p", "head-refit"}
    assert "below the head" in found["not_covered"]["relearn-stage2"]
    assert found["not_covered"]["loft"] == "its fit was refused in this run"
    run(copy)
    assert (copy / "reports" / "shadow.json").read_bytes() == first


@pytest.mark.long
@pytest.mark.slow
def test_whole_networks_go_on_after_a_kill(copy):
    def edit(p):
        p["methods"] = ["logit-mask", "relearn-stage2", "loft"]
        p["fit"]["loft"] = {"rank": 1, "solver": "exact"}  # refused on every network
        p["activations"]["cuts"] = ["stage2"]
        p["shadow"].update(networks=4, epochs=1)

    change(copy, edit)
    for name in ("relearn-stage2", "loft"):
        run(copy, "fit", name)
    home = copy / "data" / "shadow"
    command = [sys.executable, "-m", "expunge.stages.shadow"]
    with subprocess.Popen(command, cwd=copy, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 120
        while not (home / "trained-1" / "key.json").is_file():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    whole = (home / "trained-0" / "margins" / "margins.safetensors").stat()
    weights = (home / "trained-1" / "model" / "model.safetensors").stat()
    assert "training trained-0 on" not in run(copy)
    assert (home / "trained-0" / "margins" / "margins.safetensors").stat().st_ino == whole.st_ino
    assert (home / "trained-1" / "model" / "model.safetensors").stat().st_ino == weights.st_ino
    found = report(copy)
    assert found["kind"] == "networks" and found["models"]["trained"] == 4
    assert found["methods"].keys() == {"logit-mask", "relearn-stage2"}
    assert found["not_covered"] == {"loft": "its fit was refused in this run"}

    # The attacked margins must be those of the networks on disk.
    forget = Split(copy / "data/split").scored_rows("forget")
    dataset = Dataset(copy / "data" / "dataset")
    for name in ("trained-2", "retrained-3"):
        with torch.no_grad():
            logits = load_classifier(home / name / "model")(dataset.images(forget)).numpy()
        retained = load_file(home / name / "margins" / "margins.safetensors")["network/forget"]
        np.testing.assert_allclose(retained, margins(logits, dataset.labels()[forget]), atol=1e-3)
    masked = load_file(home / "trained-2" / "margins" / "margins.safetensors")["logit-mask/forget"]
    assert (masked == -100).all()

    # Only a damaged part is made again.
    (home / "retrained-3" / "margins" / "margins.safetensors").write_bytes(b"damaged")
    before, log = (copy / "reports" / "shadow.json").read_bytes(), run(copy)
    assert "retrained-3/margins" in log and "train epoch" not in log
    assert (copy / "reports" / "shadow.json").read_bytes() == before


@pytest.mark.slow
def test_networks_that_a_cluster_makes_have_the_bytes_of_one_process(copy, monkeypatch, capsys):
    from expunge.shadow.on_ray import make_on_ray

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # Ray would require a token here, and from all later tests

    def edit(p):
        p["methods"] = ["logit-mask", "relearn-stage2"]
        p["activations"]["cuts"] = ["stage2"]
        p["extract"].update(engine="ray", workers=2)
        p["shadow"].update(networks=4, epochs=1)

    change(copy, edit)
    monkeypatch.chdir(copy)
    job = Job.of_workspace(load_config())
    assert len(job.missing(4)) == 8
    make_on_ray(job, 1)
    assert "shadow: 2 networks, at most 2 Ray tasks at a time" in capsys.readouterr().err
    assert job.missing(1) == [] and len(job.missing(4)) == 6
    home = copy / "data/shadow"
    written = {f.relative_to(home): f.read_bytes() for f in home.rglob("*.safetensors")}
    shutil.rmtree(home)
    alone = [make_member(job, side, 0) for side in ("trained", "retrained")]
    assert set(alone[0]) > {"network/forget", "relearn-stage2/forget"} and set(alone[1]) == {
        "network/forget", "network/population",
    }  # fmt: skip
    assert len(written) == 4
    assert written == {f.relative_to(home): f.read_bytes() for f in home.rglob("*.safetensors")}
    (home / "trained-0/margins/margins.safetensors").write_bytes(b"damaged")
    assert job.missing(1) == [("trained", 0)]
