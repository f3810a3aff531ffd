"""Test the audit with canaries through the whole pipeline.

The canaries are planted before training, forgotten, and then looked for in the original and the unlearned models.
"""

import json

import pytest
from safetensors.torch import save_file

from expunge.models.zoo import build
from tests.pipeline import change, dvc, lay_out
from tests.summaries import problems


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    workspace = lay_out(tmp_path_factory.mktemp("audited") / "workspace")

    network = build("resnet-small", 10, (8, 8, 1), seed=3)
    save_file({k: v.clone() for k, v in network.state_dict().items()}, workspace / "public.safetensors")

    def edit(params):
        params["data"].update(canaries=150)
        params["split"].update(selector="canaries")
        params["model"].update(training="ridge", checkpoint="public.safetensors", saw_forget_data=False)
        params["model"].update(random_features=1500)
        params["train"]["head"] = {"ridge": 0.01, "quantum": 2.0**-12}
        params["activations"]["cuts"] = []
        params.update(methods=["logit-mask", "exact"], reference="skip")

    change(workspace, edit)
    (workspace / "log.txt").write_text(dvc(workspace, "repro"))
    return workspace


@pytest.mark.slow
def test_canaries_show_in_the_original_and_not_after_exact_deletion(audited):
    summary = json.loads((audited / "reports/summary.json").read_text())
    assert summary["request"]["forget_rows"] == 150 and summary["request"]["selector"] == "canaries"
    original = summary["references"]["original"]["canaries"]
    deleted = summary["methods"]["exact"]["canaries"]
    assert original["p_remembered"] < 1e-4 and summary["methods"]["logit-mask"]["canaries"] == original
    assert min(deleted["p_remembered"], deleted["p_overshot"]) > 0.01
    assert summary["methods"]["exact"]["verdict"]["claims"]["exact"] == "shown"
    assert problems(summary) == []


@pytest.mark.slow
def test_the_report_has_the_audit_and_no_id(audited):
    page = (audited / "reports/report.html").read_text()
    assert "<h2>Canaries</h2>" in page and "## Canaries" in (audited / "reports/results.md").read_text()
    assert "canary-0" not in page


@pytest.mark.slow
def test_a_model_that_canaries_were_planted_into_is_never_registered(audited):
    assert json.loads((audited / "reports/summary.json").read_text())["selected"] == "exact"
    assert json.loads((audited / "reports/registration.json").read_text())["method"] is None
    assert "this run is an audit" in (audited / "log.txt").read_text()
