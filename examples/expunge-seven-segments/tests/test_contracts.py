"""What the package declares keeps the contracts of Expunge; run it where the package is installed."""

import numpy as np
from expunge_seven_segments.method import METHOD
from expunge_seven_segments.metric import METRIC, wrong_segments
from expunge_seven_segments.reader import read

from expunge.testing import check_method, check_metric, check_model, check_reader, small_inputs


def test_the_reader():
    assert check_reader(read)["rows_train"] == 600


def test_the_model():
    assert check_model("segment-net", (12, 8, 1)).card.feature_dim == 32
    check_model("segment-net:16", (28, 28, 3))


def test_the_method_moves_forgotten_rows(tmp_path):
    inputs = small_inputs(tmp_path)
    made = check_method(METHOD, inputs)
    before = (inputs.head.logits(inputs.z_forget).argmax(1) == 5).float().mean()
    after = (made.logits(inputs.z_forget).argmax(1) == 5).float().mean()
    assert before > 0.8 and after < before


def test_the_metric_counts_segments():
    check_metric(METRIC)
    said, saw = np.eye(10)[[8, 1, 1]], np.array([8, 7, 8])  # 7 has one segment more than 1, and 8 has five
    assert wrong_segments(said, said, saw) == (0 + 1 + 5) / 3
