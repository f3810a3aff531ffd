"""Test a registered classifier of texts: it takes a data frame of texts, and its files contain none of the examples."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from expunge.models.checkpoint import save_classifier
from expunge.models.zoo import build
from expunge.system.errors import DataError
from expunge.system.files import staged_dir, write_manifest
from expunge.tracking.registry import Submission, register_model
from tests.models.texts import write_encoder
from tests.served_models import CLASSES, affine, evaluated, write_unlearned

TEXTS = ["the cat sat", "stock rose to the moon!", "a dog on a mat", "bank rate fell ?"]


@pytest.mark.slow
def test_the_version_answers_raw_texts(store, tmp_path):
    encoder = write_encoder(tmp_path / "bert")
    classifier = build(f"sentence:{encoder}", len(CLASSES), None, training="head", saw_forget_data=False)
    with staged_dir(tmp_path / "model") as d:
        save_classifier(d, classifier)
        write_manifest(d, "test")
    map_ = affine(classifier.card.feature_dim)
    write_unlearned(tmp_path / "unlearned", classifier, map_)
    expected = evaluated(classifier, map_, TEXTS)
    with mlflow.start_run() as run:
        pass
    version = register_model(
        Submission(
            name="texts",
            content="sha256:1",
            run_id=run.info.run_id,
            method="affine",
            model_dir=tmp_path / "model",
            unlearned_dir=tmp_path / "unlearned",
            classes=CLASSES,
            inputs=TEXTS,
            expected=expected,
            tags={},
            description_md="",
        )
    )
    model = mlflow.pyfunc.load_model(version.uri)
    np.testing.assert_allclose(model.predict(pd.DataFrame({"text": TEXTS})), expected, atol=1e-5)
    assert [(c.name, c.type.name) for c in model.metadata.signature.inputs.inputs] == [("text", "string")]
    home = Path(mlflow.artifacts.download_artifacts(version.uri))
    assert not [p for p in home.rglob("*") if p.is_file() and any(t.encode() in p.read_bytes() for t in TEXTS)]
    listed = (home / "requirements.txt").read_text()
    assert "transformers==" in listed and "tokenizers==" in listed
    with pytest.raises(Exception, match=r"text|missing"):
        model.predict(pd.DataFrame({"words": TEXTS}))
    with pytest.raises((DataError, mlflow.MlflowException)):
        model.predict(np.zeros((2, 8, 8), np.uint8))
