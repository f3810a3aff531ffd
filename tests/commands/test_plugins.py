"""`expunge plugins` lists kind, name and package of each plug-in and whether it loads.

A plug-in that cannot be loaded does not keep the others from the list.
"""

from __future__ import annotations

import json
import subprocess

import pytest
from typer.testing import CliRunner

from expunge.cli import app


def listed() -> dict[tuple[str, str], tuple[str, str]]:
    done = CliRunner().invoke(app, ["plugins", "--json"])
    assert done.exit_code == 0, done.output
    return {(line["kind"], line["name"]): (line["package"], line["problem"]) for line in json.loads(done.output)}


def test_every_kind_is_listed_with_its_package_and_what_is_wrong(declare):
    declare("methods", "nearest-mean", "expunge_seven_segments.method:METHOD")
    declare("methods", "broken", "no_such_module:METHOD")
    declare("readers", "mine", "json:load")
    declare("readers", "digits", "json:load")
    declare("models", "flat", "json:load")
    declare("metrics", "twice", "json:load")
    declare("metrics", "twice", "json:loads")
    found = listed()
    assert found["methods", "nearest-mean"] == ("plugin_0 0.1.0", "")
    assert found["methods", "broken"][1].startswith("no: no_such_module:METHOD cannot be imported: ModuleNotFoundError")
    assert found["readers", "mine"] == ("plugin_2 0.1.0", "")
    assert found["readers", "digits"] == ("plugin_3 0.1.0", "not used: Expunge itself has one of this name")
    assert found["models", "flat"][1] == "no: json:load is no expunge.models.families.Family"
    assert found["metrics", "twice"][0] == "plugin_5 0.1.0 and plugin_6 0.1.0"
    assert found["metrics", "twice"][1].startswith("no: several claim this name (json:load, json:loads)")


def test_the_table_has_one_line_each_where_it_is_piped(declare):
    declare("methods", "nearest-mean", "expunge_seven_segments.method:METHOD")
    declare("methods", "broken", "no_such_module:METHOD")
    lines = CliRunner().invoke(app, ["plugins"]).output.splitlines()
    assert [line.split()[:4] for line in lines] == [
        ["kind", "name", "package", "loads"],
        ["methods", "broken", "plugin_1", "0.1.0"],
        ["methods", "nearest-mean", "plugin_0", "0.1.0"],
    ]


def test_without_plugins_it_says_where_to_read(declare):
    assert "expunge docs plugins" in CliRunner().invoke(app, ["plugins"]).output


def test_a_method_that_cannot_be_loaded_leaves_the_others_in_the_list_of_methods(declare):
    declare("methods", "broken", "no_such_module:METHOD")
    done = CliRunner().invoke(app, ["methods"])
    assert done.exit_code == 0 and "loft" in done.stdout and "broken" not in done.stdout
    assert "not listed: method 'broken' of plugin_0 0.1.0" in done.stderr


@pytest.mark.parametrize(("data", "source"), [("input.bin", ["--source", "mine"]), ("mine", [])])
def test_init_accepts_a_reader_of_a_package_with_and_without_a_path(declare, tmp_path, monkeypatch, data, source):
    declare("readers", "mine", "json:load")
    place = tmp_path / "repository"
    place.mkdir()
    subprocess.run(["git", "init", "--quiet", place], check=True)
    (place / "input.bin").write_bytes(b"as it is")
    monkeypatch.chdir(place)
    asked = ["init", "--data", data, *source, "--model", "resnet-small", "--classes", "even", "--training", "full"]
    done = CliRunner().invoke(app, [*asked, "--dry-run"])
    assert done.exit_code == 0, done.output + repr(done.exception)
    refused = CliRunner().invoke(app, [*asked[:2], "input.bin", "--source", "other", *asked[-6:], "--dry-run"])
    assert "a reader that `expunge plugins` lists" in str(refused.exception)
