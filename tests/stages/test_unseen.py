"""Test that the rows of `split.unseen` are used only by the methods that ask for them.

If these rows hold other pictures and labels, the models, retrained models, chosen settings and metrics stay the same
to the last bit.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.datasets import load_digits

from expunge.data.unseen import drawn
from expunge.stages import activations, evaluate, extract, fit, prepare, retrain, split, train
from expunge.system.files import read_json, read_manifest
from tests.pipeline import ROOT

SHARE = 0.3
# The methods for a request of whole classes and for one of rows whose classes stay.
REQUESTS = {"classes": ["loft"], "random": ["regun"]}


def archive(file: Path, garbled: bool) -> None:
    """Write an archive of digits. If `garbled`, the rows that are set aside hold noise and permuted labels."""
    digits = load_digits()
    x, y = digits.images.astype(np.uint8) * 15, digits.target.copy()
    ids = np.array([f"row {i}" for i in range(len(y))])
    names = np.where(np.arange(len(y)) % 5 == 4, "test", "train")
    if garbled:
        rows = np.flatnonzero([s == "train" and drawn(i, 0) < SHARE for i, s in zip(ids, names, strict=True)])
        rng = np.random.default_rng(1)
        x[rows] = rng.integers(0, 256, x[rows].shape, dtype=np.uint8)
        y[rows] = rng.permutation(y[rows])
    np.savez(file, x=x, y=y, ids=ids, split=names)


def run_stages(workspace: Path, monkeypatch: pytest.MonkeyPatch, garbled: bool) -> None:
    workspace.mkdir()
    archive(workspace / "digits.npz", garbled)
    params = yaml.safe_load((ROOT / "params.demo.yaml").read_text(encoding="utf-8"))
    params["data"].update(source="npz", path="digits.npz")
    params["train"].update(epochs=1)
    params["retrain"]["seeds"] = [1]
    params["fit"]["loft"] = {"choose": {"rank": [4, 16]}}
    params["fit"]["regun"] = {"epochs": 1, "retain_share": 0.2}
    monkeypatch.chdir(workspace)

    def call(main, *arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["stage", *arguments])
        main()

    for selector, methods in REQUESTS.items():
        params["split"].update(selector=selector, unseen=SHARE)
        params["methods"] = ["logit-mask", *methods]
        Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        if selector == "classes":
            for main in (prepare.main, train.main):
                call(main)
            call(extract.main, "original")
            call(activations.main)
        call(split.main)
        call(retrain.main, "1")
        call(extract.main, "retrained/1")
        for name in methods:
            call(fit.main, name)
            call(evaluate.main, name)
        for place in ("models/retrained/1", "data/split"):
            Path(place).rename(f"{place.replace('/', '-')}-{selector}")


@pytest.mark.slow
def test_only_methods_that_need_unseen_rows_depend_on_them(tmp_path, monkeypatch):
    plain, garbled = tmp_path / "plain", tmp_path / "garbled"
    run_stages(plain, monkeypatch, garbled=False)
    run_stages(garbled, monkeypatch, garbled=True)
    for model in ("models/original", "models-retrained-1-classes", "models-retrained-1-random"):
        a, b = (read_manifest(w / model)["files"]["model.safetensors"]["sha256"] for w in (plain, garbled))
        assert a == b, model
    chosen, report = (
        [read_json(w / name) for w in (plain, garbled)]
        for name in ("models/unlearned/loft/fit.json", "reports/evaluation/loft.json")
    )
    assert chosen[0]["chosen"] == chosen[1]["chosen"]
    for found in report:
        found.pop("cost", None)
    assert report[0] == report[1]
    # The method that uses these rows does differ, so the comparisons above can fail.
    weights = [read_manifest(w / "models/unlearned/regun")["files"] for w in (plain, garbled)]
    assert weights[0] != weights[1]
