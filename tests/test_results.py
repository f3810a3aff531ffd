"""Test the experiments over several seeds on two real runs on digits: their page, and what a second command repeats."""

import re
import shutil
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from expunge.evaluation.divergence import agreement_rows, kl_rows
from expunge.results.__main__ import PAGE, write_page
from expunge.results.page import claim_lines, page, section, sections_of, verdict_cells
from expunge.results.pooled import Pooled, judge, pool
from expunge.results.variants import VARIANTS, Variant, finished, run_variants
from expunge.system.errors import ConfigError, ExpungeError
from tests.pipeline import ROOT
from tests.verdicts import verdict_with

DIGITS = Variant(
    "digits",
    "Digits, small ResNet, forget class 5",
    (1, 2),
    {
        "train": {"epochs": 2},
        "activations": {"cuts": []},
        "methods": ["logit-mask", "ru-linear", "pour-p"],
    },
    without=("pour-p",),
    params="params.demo.yaml",
)


def clone(root):
    """Copy those parts of the repository that an experiment reads into `root`, and return it."""
    (root / "data").mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", "params.yaml", "params.demo.yaml"):
        shutil.copy(ROOT / name, root / name)
    for name in ("src", "flows", "data/source", "data/requests"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.dvc", ".gitignore"))
    return root


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    root = clone(tmp_path_factory.mktemp("results") / "root")
    run_variants(root, [DIGITS])
    return root


@pytest.fixture(scope="module")
def pooled(ran):
    return pool(finished(ran, DIGITS))


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_every_experiment_has_params_that_the_pipeline_takes(variant, tmp_path):
    from expunge.config import load_config

    path = tmp_path / "params.yaml"
    for seed in variant.seeds:
        path.write_text(variant.params_text(ROOT, seed))
        config = load_config(path)
        assert config.train.seed == seed and config.retrain.seeds == [100 + seed, 200 + seed, 300 + seed]
        assert not set(variant.without) & set(config.methods)


def test_a_change_of_an_unknown_key_is_refused():
    with pytest.raises(ConfigError, match=r"params\.yaml: has no key epoch"):
        Variant("x", "x", (1,), {"train": {"epoch": 3}}).params_text(ROOT, 1)


@pytest.mark.slow
def test_a_second_command_runs_nothing_and_the_page_is_the_same(ran, capfd):
    write_page(ran, [DIGITS])
    first = (ran / PAGE).read_text()
    capfd.readouterr()
    run_variants(ran, [DIGITS])
    out, _ = capfd.readouterr()
    assert "Running stage" not in out and out.count("up to date") == 2
    write_page(ran, [DIGITS])
    assert (ran / PAGE).read_text() == first


def test_the_sections_of_a_page_are_found_by_their_titles():
    parts = ["## One\n\ntext\n\n### Attacks\n\n| a |", "## Two\n\nmore"]
    assert sections_of(page(parts), "## ") == {"One": parts[0], "Two": parts[1]}
    assert sections_of("# Title\n", "## ") == {}


@pytest.mark.slow
def test_the_page_keeps_the_section_of_an_experiment_that_did_not_run_here(ran):
    elsewhere = Variant("elsewhere", "Run elsewhere", (1,))
    (ran / PAGE).parent.mkdir(parents=True, exist_ok=True)
    old = ["## Run elsewhere\n\nkept", f"## {DIGITS.title}\n\nreplaced", "## No experiment any more\n\ndropped"]
    (ran / PAGE).write_text(page(old))
    write_page(ran, [elsewhere, DIGITS])
    text = (ran / PAGE).read_text()
    found = sections_of(text, "## ")
    assert list(found) == ["Run elsewhere", DIGITS.title] and found["Run elsewhere"] == "## Run elsewhere\n\nkept"
    assert "replaced" not in text and "Training seeds: 1, 2." in text


@pytest.mark.slow
def test_seeds_differ_in_training_and_share_what_does_not_depend_on_it(ran, pooled):
    originals = [s["model"]["digest"] for s in pooled.summaries]
    assert len(set(originals)) == 2
    assert len({s["request"]["digest"] for s in pooled.summaries}) == 1
    assert len(list((ran / ".expunge/results/cache").iterdir())) > 0


@pytest.mark.slow
def test_the_noise_floor_is_that_of_the_two_retrained_models(ran, pooled):
    tables = [
        pq.read_table(DIGITS.workspace(ran, s) / f"data/evaluation/references/retrained-{100 + s}.parquet")
        for s in DIGITS.seeds
    ]
    a, b = (np.array([r["logits"] for r in t.to_pylist() if r["part"] == "forget"]) for t in tables)
    floor = pooled.values("retrained", "divergence.forget.kl")
    assert floor == pytest.approx([kl_rows(b, a).mean(), kl_rows(a, b).mean()], rel=1e-5)
    assert pooled.values("retrained", "divergence.forget.agreement") == pytest.approx([agreement_rows(a, b).mean()] * 2)


@pytest.mark.slow
def test_the_page_holds_mean_and_spread_of_the_summaries(ran, pooled):
    text = page([section(DIGITS, pooled)])
    for name in ("original", "logit-mask", "ru-linear"):
        blocks = [s["references"]["original"] if name == "original" else s["methods"][name] for s in pooled.summaries]
        values = [100 * block["accuracy"]["test_retain"] for block in blocks]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        assert f"{np.mean(values):.1f}% ± {np.std(values, ddof=1):.1f}%" in row
    assert "pour-p" not in text
    assert yaml.safe_load((DIGITS.workspace(ran, 2) / "params.yaml").read_text())["train"]["seed"] == 2


def pool_of(*verdicts):
    summaries = tuple({"methods": {"m": {"verdict": verdict}}} for verdict in verdicts)
    return Pooled(tuple(range(len(verdicts))), summaries, {})


def test_verdicts_are_counted_over_the_seeds():
    outputs, both = ("outputs",), ("outputs", "features")
    found = judge(
        pool_of(
            verdict_with(outputs),
            verdict_with(both, refuted=("backbone",)),
            verdict_with(both, "lost"),
        ),
        "m",
    )
    assert found.kept == 2 and found.runs == 3 and found.always == ("outputs",)
    assert found.shown["features"] == 2 and found.refuted["backbone"] == 1
    assert verdict_cells(found) == ["2/3", "outputs 3/3, features 2/3"]
    assert verdict_cells(judge(pool_of(verdict_with(())), "m")) == ["1/1", "none"]


def priced(*verdicts):
    """Return pooled runs of one method that took a tenth of the time of a retraining."""
    block = {"cost": {"fit_s": 1.0, "retrain_s": 10.0}}
    runs = pool_of(*verdicts)
    return Pooled(runs.seeds, runs.summaries, {"m": [block for _ in verdicts]})


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ([verdict_with(("outputs",))] * 2, "m (10 times faster than retraining)"),
        (
            [verdict_with(("outputs",)), verdict_with(("outputs",), "lost")],
            "Shown in every run, outputs: m.",
        ),
        ([{**verdict_with(("outputs",)), "control": "logit-mask"}], "Shown in every run, outputs: m."),
        ([verdict_with(())] * 2, "No claim about erasure"),
    ],
)
def test_only_what_shows_more_than_a_control_at_kept_utility_has_a_speed(verdicts, said):
    runs = priced(*verdicts)
    lines = claim_lines(runs, {"m": judge(runs, "m")})
    assert said in lines[0] and ("faster" in " ".join(lines)) == ("faster" in said)


def test_the_page_of_one_run_says_so(finished):
    pooled = pool({1: finished})
    text = page([section(Variant("digits", "Digits", (1, 2, 3)), pooled)])
    assert "Training seeds: 1 of 3." in text
    for name, block in pooled.summaries[0]["methods"].items():
        row = next(line for line in text.splitlines() if line.startswith(f"| {name}"))
        assert f"{block['accuracy']['test_retain']:.1%}" in row
        assert row.endswith(" | ".join(["", *verdict_cells(judge(pooled, name))]) + " |")


def test_without_a_finished_run_there_is_no_page(tmp_path):
    with pytest.raises(ExpungeError, match="no finished experiment"):
        write_page(tmp_path, [DIGITS])


def test_the_help_text_names_the_experiments():
    out = subprocess.run(
        [sys.executable, "-m", "expunge.results", "--help"], capture_output=True, text=True, check=True
    )
    for variant in VARIANTS:
        assert re.search(rf"^  {variant.name} +{re.escape(variant.title[:20])}", out.stdout, re.M)
