"""Tests of the form with which the deployment takes requests in: its fields, and the requests that it makes."""

from __future__ import annotations

import pytest

from expunge.data.dataset import Dataset
from expunge.erasure.requests import Store
from expunge.erasure.selection import mask_of
from expunge.system.errors import RequestError
from tests.erasure.promoted_batch import TODAY
from tests.sweep import people_workspace


def test_a_request_for_more_than_half_is_confirmed_in_the_form(tmp_path, monkeypatch):
    from prefect.utilities.callables import parameter_schema

    from flows.erasure import erasure, take_in

    asked = parameter_schema(erasure).properties["more_than_half"]
    assert asked["type"] == "boolean" and asked["default"] is False and "more than half" in asked["description"]
    root = people_workspace.workspace(tmp_path / "workspace", [5])  # three classes of equal size
    monkeypatch.chdir(root)
    store = Store.open()
    by_mistake, meant = ["0", "1"], ["1", "2"]
    for classes, most in ((by_mistake, False), (meant, True)):
        take_in(store, None, None, classes, "", None, TODAY, most)
    first, second = sorted(store.all(), key=lambda r: r.classes)
    with pytest.raises(RequestError, match="more_than_half in the form"):
        mask_of(store, first, Dataset("data/dataset"))
    assert mask_of(store, second, Dataset("data/dataset")).sum() == 160
    store.engine.dispose()
