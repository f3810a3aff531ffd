"""Test the entry points of other packages.

A package is imported only when its name is used, and every error names the package.
"""

from __future__ import annotations

import sys

import pytest

from expunge.system import plugins
from expunge.system.errors import ConfigError


def test_nothing_is_imported_before_its_name_is_used(declare):
    (declare("readers", "mine", "lazily:read") / "lazily.py").write_text("def read(): ...\n")
    assert plugins.names("readers") == ["mine"] and plugins.names("methods") == []
    assert plugins.package_of("readers", "mine") == "plugin_0 0.1.0" and "lazily" not in sys.modules
    assert plugins.load("readers", "mine", None)() is None and "lazily" in sys.modules


def test_a_name_that_two_packages_claim_is_an_error_that_names_both(declare):
    declare("metrics", "mine", "json:dumps")
    declare("metrics", "mine", "json:loads")
    with pytest.raises(ConfigError, match=r"metric 'mine' of plugin_0 0\.1\.0 and plugin_1 0\.1\.0.*dumps, json:loads"):
        plugins.load("metrics", "mine", None)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("raise RuntimeError('no\\nway')", "RuntimeError: no"),
        ("import sys; sys.exit('leaves')", "SystemExit: leaves"),
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("READ = (", "SyntaxError: '(' was never closed (broken.py, line 1)"),
        ("", "AttributeError: module 'broken' has no attribute 'READ'"),
    ],
)
def test_a_package_that_cannot_be_imported_is_one_line_with_its_name(declare, code, why):
    (declare("models", "mine", "broken:READ") / "broken.py").write_text(code)
    with pytest.raises(ConfigError) as caught:
        plugins.load("models", "mine", None)
    assert str(caught.value) == f"model family 'mine' of plugin_0 0.1.0: broken:READ cannot be imported: {why}"


def test_an_object_of_the_wrong_kind_is_named(declare):
    declare("readers", "mine", "sys:path")
    with pytest.raises(ConfigError, match=r"reader 'mine' of plugin_0 0\.1\.0: sys:path is no function"):
        plugins.load("readers", "mine", None)
