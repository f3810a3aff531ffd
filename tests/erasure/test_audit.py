"""Tests of `certificate audit` after an exact deletion on digits, in every mode of training.

The audit computes the registered model again, and must find a changed weight, backbone, set of rows or feature.
"""

from __future__ import annotations

import json
import os
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from expunge.cli import app
from expunge.data.dataset import Dataset
from expunge.erasure.audit import audit
from expunge.features.store import FeatureStore, write_shard
from expunge.finetune.shards import TrainingShard
from expunge.ledger.keys import signing_key
from expunge.methods.exact_shards import drawn
from expunge.models.checkpoint import digest_of_tensors, load_classifier, save_classifier
from expunge.models.zoo import build
from expunge.system.errors import CertificateError, ConfigError, ManifestError, QualityError, TrackingError
from expunge.system.files import read_json, sha256, staged_dir, write_json, write_manifest
from tests.exact_workspace import CERTIFICATE, certify, delete, write_features

SLOW = ["head", "above", "shards", "ridge-sharded"]


@pytest.fixture(scope="module", params=["ridge", *(pytest.param(mode, marks=pytest.mark.slow) for mode in SLOW)])
def deleted_from(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(f"audited-{request.param}")
    with pytest.MonkeyPatch.context() as patch, chdir(root):
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        delete(request.param)
    return root


@pytest.fixture
def root(deleted_from, monkeypatch) -> Path:
    """Change into the workspace, and restore it after the test.

    The test runs in the original place and not in a copy, because the registry stores absolute paths.
    """
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{deleted_from / 'mlflow.db'}")
    monkeypatch.chdir(deleted_from)
    copy = deleted_from.with_name(f"{deleted_from.name}-kept")
    shutil.copytree(deleted_from, copy)
    yield deleted_from
    os.chdir("/")
    shutil.rmtree(deleted_from)
    copy.rename(deleted_from)


def found(encode: bool = False, **nonce: object) -> dict:
    return audit(CERTIFICATE, signing_key(Path()).public, encode, **nonce)


def layers(root: Path) -> bool:
    """Return whether layers were trained, and not only a head."""
    return "above" in root.name or "audited-shards" in root.name


def served(root: Path) -> Path:
    """Return the directory of the registered version."""
    return next(root.glob("mlartifacts/**/servable"))


def seal(directory: Path) -> None:
    """Write digests and sizes of the changed files into the manifest, as somebody who hides the change would."""
    manifest = read_json(directory / "manifest.json")
    for name, entry in manifest["files"].items():
        entry.update(sha256=sha256(directory / name), bytes=(directory / name).stat().st_size)
    write_json(directory / "manifest.json", manifest)


def test_an_audit_agrees_with_an_exact_deletion(root):
    report = found(encode=True)
    assert report["agrees"] and report["rows"] and report["backbone"] and report["dataset_as_certified"]
    assert report["distance"] <= report["allowed"]
    assert not any("stored features" in line for line in report["trusted"])
    assert report["activations"] if layers(root) else report["features"]["agrees"]
    if "head" not in root.name:  # the sums of ridge and the training of layers are repeated to the bit
        assert report["same_bits"] and report["distance"] == 0
    retained = int((Dataset("data/dataset").splits() == "train").sum()) - 20
    assert f"{retained:,} retained" in report["recomputed"]
    assert any("never saw the rows" in line for line in report["trusted"])


def test_a_changed_weight_is_found(root):
    weights = served(root) / "model.safetensors"
    tensors = load_file(weights)
    tensors["head.weight"][2, 3] += 1e-3 * tensors["head.weight"].norm()
    save_file(tensors, weights)
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        found()
    seal(served(root))
    report = found()
    assert not report["agrees"] and report["rows"] and report["backbone"]
    if "audited-shards" in root.name:  # the head is the mean of the shards, which the audit checks by itself
        assert not report["same_mean"]
    else:
        assert report["distance"] > report["allowed"]


def test_another_backbone_is_found(root):
    weights = served(root) / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.startswith("backbone.") and tensors[n].is_floating_point())
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, weights)
    seal(served(root))
    report = found()
    assert not report["agrees"] and not report["backbone"] and report["rows"]
    # Above a cut the distance covers all layers. With shards it covers only those above the cut.
    fits = "above" not in root.name
    assert (report["distance"] <= report["allowed"]) == fits


@pytest.mark.parametrize("what", ["a row fewer", "another label"])
def test_another_set_of_rows_is_found(what, root):
    """The dataset and the features are changed in the same way, so they are consistent with each other."""
    row = int(np.flatnonzero(Dataset("data/dataset").splits() == "train")[0])
    name, value = ("label", 7) if what == "another label" else ("split", "test")
    store = FeatureStore("data/features/original")
    assert store.column("label")[row] != 7
    z = store.z()
    for directory in (Path("data/dataset"), Path("data/features/original")):
        (file,) = directory.glob("part-*.parquet")
        table = pq.read_table(file).drop_columns(["z"] if directory.name == "original" else [])
        column, at = table[name].to_pylist(), table.schema.get_field_index(name)
        column[row] = value
        table = table.set_column(at, table.schema.field(name), pa.array(column, table.schema.field(name).type))
        if directory.name == "original":
            write_shard(file, table, z)
        else:
            pq.write_table(table, file)
        seal(directory)
    if layers(root):
        with pytest.raises(QualityError, match="other rows"):
            found()
        return
    report = found()
    assert not report["agrees"] and not report["rows"] and report["backbone"] and not report["dataset_as_certified"]


def test_features_of_something_else_are_found(root):
    """A head that was fitted to other features agrees with them, so only extracting them again shows the change."""
    if layers(root):
        stored = np.load("data/activations/stage1.npy")
        np.save("data/activations/stage1.npy", stored + np.float16(1e-2))
        seal(Path("data/activations"))
        assert not found(encode=True)["activations"]
        return
    classifier = load_classifier("models/original")
    other = build("resnet-small", 10, Dataset("data/dataset").image_shape, seed=9)
    classifier.backbone.load_state_dict(other.backbone.state_dict())
    with staged_dir(Path("models/other")) as staging:
        save_classifier(staging, classifier)
        write_manifest(staging, "test")
    write_features("models/other")
    report = found(encode=True)
    assert not report["features"]["agrees"] and not report["agrees"]


def test_what_an_audit_cannot_recompute_is_listed(root):
    claim = read_json(Path("models/unlearned/exact/fit.json"))["exact"]
    certify(None, "1")
    with pytest.raises(CertificateError, match="nothing to compute again"):
        found()
    certify(claim, "7")
    with pytest.raises(TrackingError, match="supersedes"):
        found()
    document = json.loads(CERTIFICATE.read_text())
    document["certificate"]["unlearning"]["exact"]["rows"]["retained"] += 1
    CERTIFICATE.write_text(json.dumps(document))
    with pytest.raises(CertificateError, match="changed after it was signed"):
        found()


def test_the_command_prints_its_findings_and_its_status_follows_them(root):
    from typer.testing import CliRunner

    run = CliRunner()
    good = run.invoke(app, ["certificate", "audit", str(CERTIFICATE.parent)])
    assert good.exit_code == 0 and "what training without the rows gives" in good.output
    report = json.loads(run.invoke(app, ["certificate", "audit", str(CERTIFICATE), "--json"]).stdout)
    assert report["agrees"] is True and report["version"] == "models:/expunge-exactly/1"
    tensors = load_file("models/original/model.safetensors")  # the original model in place of the product
    save_file(tensors, served(root) / "model.safetensors")
    seal(served(root))
    bad = run.invoke(app, ["certificate", "audit", str(CERTIFICATE)])
    assert bad.exit_code != 0 and isinstance(bad.exception, CertificateError) and "NOT" in bad.output


def shipped(root: Path, change: str) -> None:
    """Change the first weight tensor of the registered version whose name starts with `change`."""
    weights = served(root) / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.startswith(change) and tensors[n].is_floating_point())
    tensors[name] = tensors[name] + 1e-4
    save_file(tensors, weights)
    seal(served(root))


def nonce_for(shard: int) -> str:
    return next(nonce for i in range(1000) if drawn(nonce := f"{i:032x}", 4, 1) == [shard])


def test_a_nonce_picks_shards_that_are_made_again(root, monkeypatch):
    if "audited-shards" not in root.name:
        with pytest.raises(CertificateError, match="no shards above a cut for a nonce to select"):
            found(nonce="00" * 16)
        return
    trained: list[int] = []
    whole = TrainingShard.trained
    monkeypatch.setattr(TrainingShard, "trained", lambda self, *a: trained.append(self.number) or whole(self, *a))
    report = found(nonce=nonce_for(2))
    assert report["agrees"] and report["same_bits"] and report["shards_made_again"] == [2] == trained
    assert any("3 of 4 shards, which were not trained again" in line and "75%" in line for line in report["trusted"])
    two = found(nonce=nonce_for(1), wanted=2)
    assert two["agrees"] and len(two["shards_made_again"]) == 2 and 1 in two["shards_made_again"]
    assert any("2 of 4 shards, which were not trained again" in line and "50%" in line for line in two["trusted"])
    assert not any("not trained again" in line for line in found()["trusted"])


def test_a_changed_shard_is_found_whatever_the_nonce_picks(root):
    """The digests in the certificate show the change.

    If the certificate itself has the digest of the wrong weights, only training that shard again shows it.
    """
    if "audited-shards" not in root.name:
        return
    shipped(root, "backbone.uppers.2.tail")
    picked, missed = found(nonce=nonce_for(2)), found(nonce=nonce_for(0))
    assert not picked["agrees"] and picked["distance"] > 0 and not missed["agrees"] and missed["distance"] == 0
    claim = read_json(Path("models/unlearned/exact/fit.json"))["exact"]
    tensors = load_file(served(root) / "model.safetensors")
    prefix = "backbone.uppers.2."
    wrong = digest_of_tensors({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    claim["shards"]["parts"][2][-1]["weights_digest"] = wrong
    certify(claim, "1")
    picked, missed = found(nonce=nonce_for(2)), found(nonce=nonce_for(0))
    assert not picked["agrees"] and missed["agrees"]


def test_a_changed_mean_is_found(root):
    if "audited-shards" not in root.name:
        return
    shipped(root, "head.weight")
    report = found(nonce=nonce_for(1))
    assert not report["agrees"] and not report["same_mean"] and report["same_bits"]


def test_the_command_says_which_shards_were_picked(root):
    from typer.testing import CliRunner

    if "audited-shards" not in root.name:
        return
    run, nonce = CliRunner(), nonce_for(3)
    good = run.invoke(app, ["certificate", "audit", str(CERTIFICATE), "--nonce", nonce, "--shards", "1"])
    assert good.exit_code == 0, good.output
    assert f"shards trained again: 3 of 0 to 3 (selected by nonce {nonce}); the mean agrees" in good.output
    for arguments, problem in (
        (["--nonce", "ab"], "at least 16 bytes as hexadecimal"),
        (["--nonce", "z" * 32], "at least 16 bytes as hexadecimal"),
        (["--nonce", nonce, "--shards", "5"], "give a number from 1 to 4"),
        (["--nonce", nonce, "--shards", "0"], "give a number from 1 to 4"),
        (["--shards", "2"], "needs --nonce"),
    ):
        bad = run.invoke(app, ["certificate", "audit", str(CERTIFICATE), *arguments])
        assert isinstance(bad.exception, ConfigError) and problem in str(bad.exception)
