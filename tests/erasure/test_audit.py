"""An audit on digits: a registered head that was deleted from exactly is made again, and what is found by that."""

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
from expunge.ledger.keys import signing_key
from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.zoo import build
from expunge.system.errors import CertificateError, ManifestError, QualityError, TrackingError
from expunge.system.files import read_json, sha256, staged_dir, write_json, write_manifest
from tests.exactly import CERTIFICATE, certify, delete, write_features


@pytest.fixture(scope="module", params=["ridge", "head", "above"])
def made(request, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp(f"audited-{request.param}")
    with pytest.MonkeyPatch.context() as patch, chdir(root):
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        delete(request.param)
    return root


@pytest.fixture
def root(made, monkeypatch) -> Path:
    """The workspace, put back as it was afterwards; the registry's files lie under their first path."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{made / 'mlflow.db'}")
    monkeypatch.chdir(made)
    kept = made.with_name(f"{made.name}-kept")
    shutil.copytree(made, kept)
    yield made
    os.chdir("/")
    shutil.rmtree(made)
    kept.rename(made)


def found(encode: bool = False) -> dict:
    return audit(CERTIFICATE, signing_key(Path()).public, encode)


def served(root: Path) -> Path:
    """The files of the registered version."""
    return next(root.glob("mlartifacts/**/servable"))


def seal(directory: Path) -> None:
    """Make a changed directory consistent again, as somebody who covers their tracks would."""
    manifest = read_json(directory / "manifest.json")
    for name, entry in manifest["files"].items():
        entry.update(sha256=sha256(directory / name), bytes=(directory / name).stat().st_size)
    write_json(directory / "manifest.json", manifest)


def test_it_agrees_with_what_was_deleted(root):
    said = found(encode=True)
    assert said["agrees"] and said["rows"] and said["backbone"] and said["dataset_as_certified"]
    assert said["distance"] <= said["allowed"]
    assert not any("stored features" in line for line in said["trusted"])
    assert said["activations"] if "above" in root.name else said["features"]["agrees"]
    if "head" not in root.name:  # sums are exact; so is training again
        assert said["same_bits"] and said["distance"] == 0
    retained = int((Dataset("data/dataset").splits() == "train").sum()) - 20
    assert f"{retained:,} retained" in said["recomputed"]
    assert any("never saw the rows" in line for line in said["trusted"])


def test_a_changed_weight_is_found(root):
    weights = served(root) / "model.safetensors"
    tensors = load_file(weights)
    tensors["head.weight"][2, 3] += 1e-3 * tensors["head.weight"].norm()
    save_file(tensors, weights)
    with pytest.raises(ManifestError, match=r"model\.safetensors"):
        found()
    seal(served(root))
    said = found()
    assert not said["agrees"] and said["distance"] > said["allowed"] and said["rows"] and said["backbone"]


def test_another_backbone_is_found(root):
    weights = served(root) / "model.safetensors"
    tensors = load_file(weights)
    name = next(n for n in tensors if n.startswith("backbone.") and tensors[n].is_floating_point())
    tensors[name] = tensors[name] * 1.01
    save_file(tensors, weights)
    seal(served(root))
    said = found()
    assert not said["agrees"] and not said["backbone"] and said["rows"]
    assert (said["distance"] <= said["allowed"]) == ("above" not in root.name)  # there the layers are compared, too


@pytest.mark.parametrize("what", ["a row fewer", "another label"])
def test_another_set_of_rows_is_found(what, root):
    """The same change in dataset and features, so that they fit each other."""
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
    if "above" in root.name:
        with pytest.raises(QualityError, match="other rows"):
            found()
        return
    said = found()
    assert not said["agrees"] and not said["rows"] and said["backbone"] and not said["dataset_as_certified"]


def test_features_of_something_else_are_found(root):
    """A head fitted to made-up features agrees with itself; making the features again shows it."""
    if "above" in root.name:
        kept = np.load("data/activations/stage1.npy")
        np.save("data/activations/stage1.npy", kept + np.float16(1e-2))
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
    said = found(encode=True)
    assert not said["features"]["agrees"] and not said["agrees"]


def test_what_it_cannot_recompute_is_said(root):
    claim = read_json(Path("models/unlearned/exact/fit.json"))["exact"]
    certify(None, "1")
    with pytest.raises(CertificateError, match="nothing to make again"):
        found()
    certify(claim, "7")
    with pytest.raises(TrackingError, match="supersedes"):
        found()
    document = json.loads(CERTIFICATE.read_text())
    document["certificate"]["unlearning"]["exact"]["rows"]["retained"] += 1
    CERTIFICATE.write_text(json.dumps(document))
    with pytest.raises(CertificateError, match="changed after it was signed"):
        found()


def test_the_command_prints_and_ends_as_it_finds(root):
    from typer.testing import CliRunner

    run = CliRunner()
    good = run.invoke(app, ["certificate", "audit", str(CERTIFICATE.parent)])
    assert good.exit_code == 0 and "what training without the rows gives" in good.output
    said = json.loads(run.invoke(app, ["certificate", "audit", str(CERTIFICATE), "--json"]).stdout)
    assert said["agrees"] is True and said["version"] == "models:/expunge-exactly/1"
    tensors = load_file("models/original/model.safetensors")  # the original, passed off as the product
    save_file(tensors, served(root) / "model.safetensors")
    seal(served(root))
    bad = run.invoke(app, ["certificate", "audit", str(CERTIFICATE)])
    assert bad.exit_code != 0 and isinstance(bad.exception, CertificateError) and "NOT" in bad.output
