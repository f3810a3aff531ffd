"""The comparison runs each method on the requests it answers, and `expunge methods` reads the verdicts of its page."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from expunge.cli import app
from expunge.config import load_config
from expunge.methods.table import METHODS
from expunge.results.comparators import (
    PAGE,
    PREFIX,
    REQUESTS,
    experiments,
    methods_for,
    methods_run,
    record,
    recorded,
    write_comparators,
)
from expunge.results.comparators_page import BEGIN, END, claims, measured_sections, refusals, section, with_measured
from expunge.results.pooled import Pooled, judge, pool, pool_summaries
from expunge.results.variants import HOME, Variant
from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.files import write_json
from tests.pipeline import ROOT
from tests.verdicts import verdict_with


def test_each_request_has_the_methods_that_answer_it_and_params_that_the_pipeline_takes(tmp_path):
    variants = experiments(ROOT)
    by_class, by_rows, pretrained, tenth, people, texts = variants
    assert tuple(v.name.removeprefix(PREFIX) for v in variants) == REQUESTS
    path = tmp_path / "params.yaml"
    for variant in variants:
        kind = "rows" if variant in (by_rows, tenth, people) else "classes"
        path.write_text(variant.params_text(ROOT, 2))
        config = load_config(path)
        assert config.methods[0] == "logit-mask" and config.train.seed == 2
        assert all(kind in METHODS[name].kind.facts.requests for name in config.methods[1:])
    assert {"trew", "muda", "damp", "natmu", "short-retrain"} <= set(by_class.changes["methods"])
    assert "regun" in by_rows.changes["methods"] and by_rows.changes["split"]["unseen"] == 0.1
    assert not {"muda", "delete"} & set(by_rows.changes["methods"])
    assert "residual-alignment" in texts.changes["methods"]
    assert pretrained.changes["methods"] == by_class.changes["methods"]
    assert tenth.changes["methods"] == people.changes["methods"] == by_rows.changes["methods"]
    # Each method that params name runs in one of them, except those that need another way of training.
    named = {name for name in METHODS if name in yaml.safe_load((ROOT / "params.yaml").read_text())["fit"]}
    run = {name for v in (by_class, by_rows) for name in v.changes["methods"]}
    assert named - run == {"exact", "certified-removal"}


def test_a_run_of_some_methods_is_added_to_those_that_were_run_before(tmp_path):
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    assert methods_for(tmp_path, "classes", ["delete"]) == ["logit-mask", "delete"]
    assert methods_for(tmp_path, "rows", ["delete"]) == ["logit-mask"]
    workspace = tmp_path / HOME / "comparators-class" / "1"
    workspace.mkdir(parents=True)
    (workspace / "params.yaml").write_text("methods: [logit-mask, leace, gone]\n")
    assert methods_run(tmp_path, "comparators-class") == {"logit-mask", "leace", "gone"}
    assert experiments(tmp_path, ["delete"])[0].changes["methods"] == ["logit-mask", "leace", "delete"]
    with pytest.raises(ConfigError, match=r"magic: no method that params\.yaml has settings for"):
        methods_for(tmp_path, "classes", ["magic"])


def block(kl, fit_s, verdict=None):
    found = {
        "accuracy": {"retain": 0.9, "forget": 0.1, "test_retain": 0.8},
        "divergence": {"forget": {"kl": kl, "agreement": 0.5}},
        "membership": {"loss_auc": 0.5},
        "cost": {"fit_s": fit_s, "retrain_s": 20.0},
    }
    return found if verdict is None else {**found, "verdict": {**verdict, "control": None}}


@pytest.fixture
def pooled():
    """Return pooled results of two seeds, of which the second refused the method `shaky`."""
    good, bad = verdict_with(("outputs",)), verdict_with((), "lost")
    methods = [
        {"logit-mask": block(0.9, 0.1, bad), "delete": block(0.4, 2.0, good), "shaky": block(0.5, 4.0, bad)},
        {"logit-mask": block(0.9, 0.1, bad), "delete": block(0.6, 4.0, good)},
    ]
    request = {"forget_rows": 10, "retain_rows": 90}
    refused = [{}, {"shaky": "shaky: accuracy fell"}]
    summaries = tuple({"methods": m, "refused": r, "request": request} for m, r in zip(methods, refused, strict=True))
    blocks = {"original": [block(9, 0)] * 2, "retrained": [block(0.3, 0)] * 2}
    blocks |= {name: [m[name] for m in methods if name in m] for name in ("logit-mask", "delete", "shaky")}
    return Pooled((1, 2), summaries, blocks)


def test_a_section_states_cost_refusals_and_verdicts_which_can_be_read_back(pooled):
    text = section(Variant("x", "class: made up", (1, 2, 3)), pooled)
    row = next(line for line in text.splitlines() if line.startswith("| delete"))
    assert "| 0.50 ± 0.14 |" in row and "| 15.0% |" in row and row.endswith("| 2/2 | outputs 2/2 |")
    assert refusals(pooled) == ["Refused in 1 of 2 seeds: shaky: accuracy fell"]
    assert "Training seeds: 1, 2 of 3. " not in text and "Training seeds: 1, 2 of 3." in text
    page = with_measured(f"# Title\n\n{BEGIN}\n\nold\n\n{END}\n\nrest\n", [text, text.replace("class:", "rows:")])
    assert page.startswith("# Title\n") and page.endswith(f"{END}\n\nrest\n") and "old" not in page
    assert claims(page) == {
        "logit-mask": "class: kept 0/2, shown none; rows: kept 0/2, shown none",
        "delete": "class: kept 2/2, shown outputs 2/2; rows: kept 2/2, shown outputs 2/2",
        "shaky": "class: kept 0/1, shown none; rows: kept 0/1, shown none",
    }
    assert measured_sections(page) == {"class: made up": text, "rows: made up": text.replace("class:", "rows:")}
    assert with_measured(page, [text]).count(BEGIN) == 1
    with pytest.raises(ExpungeError, match="needs the lines"):
        with_measured("# Title\n", [text])


def test_the_command_methods_lists_the_verdicts_of_the_page():
    text = (ROOT / "docs/comparators.md").read_text()
    assert text.count(BEGIN) == text.count(END) == 1
    found = json.loads(CliRunner().invoke(app, ["methods", "--json"]).output)
    output = claims(text)
    for name in METHODS:
        assert found[name]["claim"] == output.get(name, "not measured")
        assert found[name]["requests"] and found[name]["needs"] and found[name]["cost"] and found[name]["source"]
    assert "claim" in CliRunner().invoke(app, ["methods"]).output.splitlines()[0]


def test_runs_of_which_one_refused_a_method_are_pooled_all_the_same(pooled, tmp_path):
    workspaces = {}
    for seed, summary in zip(pooled.seeds, pooled.summaries, strict=True):
        workspaces[seed] = tmp_path / str(seed)
        references = {"original": block(9, 0), "retrained": block(0.3, 0)}
        write_json(workspaces[seed] / "reports/summary.json", {**summary, "references": references})
        place = workspaces[seed] / "data/evaluation/references"
        place.mkdir(parents=True)
        logits = pa.array([[0.0, 1.0 * seed], [1.0, 0.0]], pa.list_(pa.float32(), 2))
        pq.write_table(pa.table({"part": ["forget", "retain"], "logits": logits}), place / f"retrained-{seed}.parquet")
    found = pool(workspaces)
    assert {name: len(blocks) for name, blocks in found.blocks.items()} == {
        "original": 2, "retrained": 2, "logit-mask": 2, "delete": 2, "shaky": 1,
    }  # fmt: skip
    assert judge(found, "shaky").runs == 1 and judge(found, "delete").runs == 2


def test_a_page_from_kept_runs_is_that_from_whole_summaries(pooled, tmp_path):
    """Each seed may be run on another machine: its workspace can go once it is kept."""
    variant = Variant("comparators-class", "class: made up", (1, 2))
    summaries = {}
    for seed, summary in zip(pooled.seeds, pooled.summaries, strict=True):
        references = {"original": block(9, 0), "retrained": block(0.3, 0)}
        for reference in references.values():
            del reference["cost"]
        summaries[seed] = {**summary, "model": {}, "references": references, "shadow": {"kind": "off"}}
        workspace = variant.workspace(tmp_path, seed)
        write_json(workspace / "reports/summary.json", summaries[seed])
        # Every stage held half of a processor, so its processor seconds are half of its seconds.
        usage = {"cpu_percent_of_one_core": {"time": [1.0, 4.0], "value": [20.0, 60.0]}}
        for name, made in summary["methods"].items():
            fit_s = 2 * made["cost"]["fit_s"]
            write_json(workspace / f"reports/cost/fit-{name}.json", {"fit_s": fit_s, "span": [0, 4], "usage": usage})
        write_json(workspace / "reports/cost/retrain-1.json", {"train_s": 40.0, "span": [0, 4], "usage": usage})
        record(tmp_path, Variant(variant.name, variant.title, (seed,)))
        (workspace / "reports/summary.json").unlink()
    kept = recorded(tmp_path, variant)
    assert list(kept) == [1, 2] and "gates" not in json.dumps(kept) and "shadow" not in kept[1]
    (tmp_path / PAGE).parent.mkdir()
    (tmp_path / PAGE).write_text(f"# Title\n\n{BEGIN}\n\n{END}\n")
    write_comparators(tmp_path, [variant])
    assert section(variant, pool_summaries(summaries)) in (tmp_path / PAGE).read_text()
    with pytest.raises(ExpungeError, match="no finished experiment"):
        write_comparators(tmp_path / "elsewhere", [variant])
