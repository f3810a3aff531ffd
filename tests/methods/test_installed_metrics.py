"""Tests of metrics from other packages: their inputs, the use of their values, and errors that name the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from expunge.config import read_config
from expunge.evaluation.forget_metric import ForgetMetric
from expunge.evaluation.measuring import Outputs
from expunge.methods.installed_metrics import described, forgotten_values, load_metrics
from expunge.system.errors import ConfigError

ROOT = Path(__file__).parents[2]
CODE = """
import numpy as np
from expunge.evaluation.forget_metric import ForgetMetric

def measure(logits, features, labels):
    return logits[np.arange(len(labels)), labels].mean() + 100 * features[:, 0].sum() + 1000 * len(labels)

LOGIT = ForgetMetric(measure, "mean logit of the true class", "{:.1f}", "low")
NAN = ForgetMetric(lambda *_: float("nan"), "nothing")
TEXT = ForgetMetric(lambda *_: "0.5", "nothing")

def write(logits, features, labels):
    logits[0] = 0
    return 0.0

WRITES = ForgetMetric(write, "nothing")
"""
LOGITS = np.arange(12, dtype=np.float32).reshape(4, 3)
LABELS, PARTS = np.array([0, 1, 2, 0]), np.array(["retain", "forget", "forget", "test_retain"])


@pytest.fixture
def metric(declare):
    def install(name: str) -> None:
        (declare("metrics", "mine", f"a_metric:{name}") / "a_metric.py").write_text(CODE)

    return install


def test_a_metric_gets_the_forgotten_rows_and_the_features_that_the_head_reads(metric):
    metric("LOGIT")
    z, z_prime = np.zeros((4, 2)), np.arange(8.0).reshape(4, 2)
    found = forgotten_values(load_metrics(["mine"]), Outputs(LOGITS, z, z_prime), LABELS, PARTS)
    assert found == {"mine": (4 + 8) / 2 + 100 * (2 + 4) + 1000 * 2}
    found = forgotten_values(load_metrics(["mine"]), Outputs(LOGITS, z), LABELS, PARTS)
    assert found == {"mine": (4 + 8) / 2 + 1000 * 2}


def test_reports_get_label_format_and_direction_of_an_installed_metric(metric):
    metric("LOGIT")
    assert described(load_metrics(["mine"])) == {
        "mine": {
            "name": "mean logit of the true class",
            "form": "{:.1f}",
            "target": "low",
            "package": "plugin_0 0.1.0",
        }
    }


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("NAN", "gave nan, which is not finite"),
        ("TEXT", "gave a str, not a number"),
        ("WRITES", "assignment destination is read-only"),
    ],
)
def test_a_value_that_is_no_finite_number_is_an_error_that_names_the_package(metric, name, why):
    metric(name)
    with pytest.raises(ConfigError) as caught:
        forgotten_values(load_metrics(["mine"]), Outputs(LOGITS, LOGITS), LABELS, PARTS)
    assert str(caught.value) == f"metric 'mine' of plugin_0 0.1.0: {why}; leave it out of evaluate.metrics"


def test_params_may_name_only_installed_metrics_and_each_once(metric, tmp_path):
    def problems(*names: str) -> list[str]:
        params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
        params["evaluate"]["metrics"] = list(names)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
        return read_config(tmp_path / "params.yaml")[1]

    metric("LOGIT")
    assert problems("mine") == [] and problems() == []
    assert problems("mine", "mine") == ["evaluate.metrics names a metric twice"]
    assert problems("mime") == ["evaluate.metrics names 'mime', which no installed package declares; known: mine"]
    assert "evaluate.metrics" in problems("a.b")[0]


def test_another_object_is_refused(declare):
    declare("metrics", "mine", "json:dumps")
    with pytest.raises(ConfigError, match=r"json:dumps is no expunge\.evaluation\.forget_metric\.ForgetMetric"):
        load_metrics(["mine"])


def test_numpy_numbers_are_accepted_as_values():
    assert ForgetMetric(lambda *_: np.float32(0.5), "half").of(LOGITS, LOGITS, LABELS) == 0.5
