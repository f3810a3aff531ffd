"""Make a workspace on digits, without DVC, in which rows were deleted exactly and the resulting model was registered.

The argument `training` is "above" (training above a cut), "shards" (the same in shards with slices), "ridge" or "head".
The last two can end in "-sharded" (three shards) or "-random" (random features).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.erasure.auditable import recomputes, trusted
from expunge.erasure.certificate import canonical
from expunge.erasure.evidence import manifests
from expunge.features.extract import ExtractionSettings, extract
from expunge.features.store import FeatureStore
from expunge.ledger.forgotten import ForgottenRows
from expunge.ledger.keys import signing_key
from expunge.methods.fitting import fit
from expunge.methods.inputs import FitInputs
from expunge.models.checkpoint import load_classifier
from expunge.models.zoo import build
from expunge.stages import activations
from expunge.system.files import staged_dir, write_manifest
from expunge.training.recipe import make_classifier

ROOT = Path(__file__).parents[1]
NAME = "expunge-exactly"
REQUEST = "sha256:" + "a" * 64
CUT = "stage1"
HEADS = {"above": {}, "shards": {}, "ridge": {"ridge": 1.0, "quantum": 2.0**-12}, "head": {"ridge": 1e-3, "tol": 1e-7}}
CERTIFICATE = Path("records/certificates/R-1/certificate.json")


def params(training: str) -> None:
    given = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
    above, (training, _, how) = training in ("above", "shards"), training.partition("-")
    given["model"].update(shards=3 if how == "sharded" else 1, random_features=200 if how == "random" else 0)
    given["model"].update(
        training="above" if above else training, saw_forget_data=False, checkpoint="public.safetensors"
    )
    given["train"]["head"] = HEADS[training]
    given["activations"]["cuts"] = [CUT] if above else []
    if training == "shards":
        given["model"].update(shards=4, slices=2)
    if above:
        given["model"].update(cut=CUT, weights="public")
        given["train"].update(epochs=1, precision="fp32")
    given["methods"] = ["logit-mask", "exact"]
    given["register"]["name"] = NAME
    Path("params.yaml").write_text(yaml.safe_dump(given))


def write_features(model: str = "models/original") -> None:
    shutil.rmtree("data/features", ignore_errors=True)
    extract(
        load_classifier(model), Dataset("data/dataset"), Path("data/features/original"), Path(".expunge/f"),
        ExtractionSettings.of(load_config().features),
    )  # fmt: skip


def training_rows() -> np.ndarray:
    return np.flatnonzero(Dataset("data/dataset").splits() == "train")


def inputs(gone: np.ndarray) -> FitInputs:
    """Return the inputs of a method that forgets the training rows `gone` from models/original."""
    return FitInputs(
        store=FeatureStore("data/features/original"),
        activations_dir=Path("data/activations"),
        dataset=Dataset("data/dataset"),
        classifier=load_classifier("models/original"),
        forget_rows=gone,
        retain_rows=np.setdiff1d(training_rows(), gone),
        forget_classes=[],
        validation_rows=np.empty(0, np.int64),
        model_dir=Path("models/original"),
        forgotten_dir=Path("data/forgotten"),
    )


def train(training: str) -> Dataset:
    """Make the dataset, the original, its features and its activations, and return the dataset."""
    prepare("digits", Path("data/dataset"), path=None, test_fraction=0.2, seed=0, raw_dir=Path("data/raw"))
    dataset = Dataset("data/dataset")
    network = build("resnet-small", 10, dataset.image_shape, seed=3)
    save_file({k: v.clone() for k, v in network.state_dict().items()}, "public.safetensors")
    params(training)
    make_classifier(load_config(), dataset, training_rows(), 1, Path("models/original"), Path(".expunge"))
    write_features()
    if training in ("above", "shards"):
        activations.main()
    return dataset


def delete(training: str) -> None:
    """Train, delete twenty rows, register the result and sign its certificate. The rows stay in the dataset."""
    from expunge.tracking import Submission, connect, register_model
    from expunge.tracking.store import experiment_of

    dataset = train(training)
    removed = training_rows()[5:600:30]
    unlearned = fit("exact", inputs(removed), {"exact": {}})
    with staged_dir(Path("models/unlearned/exact")) as staging:
        unlearned.save(staging)
        write_manifest(staging, "test")
    ids = dataset.sample_ids()
    ForgottenRows("data/forgotten", REQUEST, [ids[i] for i in removed]).register()
    client = connect()
    run = client.create_run(experiment_of(client, "test/audit").experiment_id)
    some = np.flatnonzero(dataset.splits() == "test")[:5]
    shown = dataset.images(some)
    if unlearned.classifier is None:
        logits = unlearned.logits(torch.from_numpy(FeatureStore("data/features/original").z(some)))
    else:
        with torch.no_grad():
            logits = unlearned.classifier.eval()(torch.from_numpy(shown))
    version = register_model(
        Submission(
            name=NAME,
            content="sha256:c",
            run_id=run.info.run_id,
            method="exact",
            model_dir=Path("models/original" if unlearned.classifier is None else "models/unlearned/exact"),
            unlearned_dir=Path("models/unlearned/exact"),
            classes=dataset.class_names,
            inputs=shown,
            expected=logits.softmax(1).numpy(),
            tags={"request": REQUEST},
            description_md="",
        )
    )
    certify(unlearned.info["exact"], version.version)


def certify(claim: dict | None, version: str) -> None:
    """Sign a certificate as `certificate.write` does, with only the parts that an audit reads."""
    unlearning = {"model": {"model": NAME, "version": version, "method": "exact"}, "exact": claim}
    unlearning["audit"] = {"recomputes": recomputes(claim or {}), "trusts": trusted()}
    body = {
        "request": {"id": "R-1"},
        "unlearning": unlearning,
        "manifests": {"before": {}, "after": manifests()},
    }
    key = signing_key(Path())
    CERTIFICATE.parent.mkdir(parents=True, exist_ok=True)
    document = {"certificate": body, "key": key.public.fingerprint, "signature": key.sign(canonical(body))}
    CERTIFICATE.write_text(json.dumps(document))
