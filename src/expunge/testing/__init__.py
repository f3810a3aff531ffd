"""Contracts of what other packages bring along: their authors run these checks in tests of their own.

    from expunge.testing import check_method, check_metric, check_model, check_reader, small_inputs

    def test_the_method_keeps_its_contract(tmp_path):
        check_method(METHOD, small_inputs(tmp_path))

Each raises AssertionError with one sentence that says which promise is broken, and for what.
"""

from expunge.testing.methods import check_method, small_inputs
from expunge.testing.metrics import check_metric
from expunge.testing.models import check_model
from expunge.testing.readers import check_reader

__all__ = ["check_method", "check_metric", "check_model", "check_reader", "small_inputs"]
