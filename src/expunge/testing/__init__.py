"""Contract tests for the methods, metrics, models and readers of other packages, to be run in their own tests.

    from expunge.testing import check_method, check_metric, check_model, check_reader, small_inputs

    def test_the_method_keeps_its_contract(tmp_path):
        check_method(METHOD, small_inputs(tmp_path))

Each check raises AssertionError with one sentence that names the violated contract and the case.

May import core, data, evaluation, features, methods, models and system.
Start with `methods.py`.
"""

from expunge.testing.methods import check_method, small_inputs
from expunge.testing.metrics import check_metric
from expunge.testing.models import check_model
from expunge.testing.readers import check_reader

__all__ = ["check_method", "check_metric", "check_model", "check_reader", "small_inputs"]
