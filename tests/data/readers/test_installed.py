"""A reader of an installed package is named in data.source and recorded in the manifest.

A sweep leaves its input alone and says who keeps it.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from expunge.config import load_config, read_config
from expunge.data.prepare import prepare
from expunge.sweep.inputs import source
from expunge.sweep.report import NotPurgeable
from expunge.sweep.targets import Targets
from expunge.system.errors import ConfigError, DataError

ROOT = Path(__file__).parents[3]
READER = """
import numpy as np
from expunge.data.schema import RAW
from expunge.data.source import Source, array_batches, split_names, stratified_test_rows

def read(path, test_fraction, seed):
    labels = np.arange(40) % 2
    images = np.full((40, 6, 5, 1), 9, np.uint8)
    splits = split_names(stratified_test_rows(labels, test_fraction, seed))
    images[:, 0, 0, 0] = np.arange(40)
    ids = [f"n{i}" for i in range(40)]
    return Source("another name", ("even", "odd"), RAW, array_batches(images, labels, splits, ids))

def nothing(path, test_fraction, seed):
    return [path]
"""


@pytest.fixture
def reader(declare):
    (declare("readers", "parity", "parity_reader:read") / "parity_reader.py").write_text(READER)


def config(tmp_path: Path, source: str, path: str | None = None) -> list[str]:
    params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
    params["data"] |= {"source": source, "path": path}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    return read_config(tmp_path / "params.yaml")[1]


def test_params_may_name_an_installed_reader_and_the_manifest_records_its_package(reader, tmp_path):
    assert config(tmp_path, "parity") == [] and config(tmp_path, "parity", "a/path") == []
    manifest = prepare("parity", tmp_path / "dataset", test_fraction=0.25)
    assert (manifest["source"], manifest["package"]) == ("parity", "plugin_0 0.1.0")
    assert (manifest["rows_train"], manifest["rows_test"], manifest["image_shape"]) == (30, 10, [6, 5, 1])
    assert "package" not in prepare("digits", tmp_path / "digits")


def test_without_the_package_params_are_refused_with_the_way_out(tmp_path):
    assert "expunge plugins" in config(tmp_path, "parity")[0]


def test_a_path_that_is_given_must_exist(reader, tmp_path):
    with pytest.raises(DataError, match="no such file or directory"):
        prepare("parity", tmp_path / "dataset", path=tmp_path / "nowhere")


def test_an_object_that_is_no_source_is_named_with_its_package(declare, tmp_path):
    (declare("readers", "parity", "parity_reader:nothing") / "parity_reader.py").write_text(READER)
    with pytest.raises(
        DataError, match=r"reader 'parity' of plugin_0 0\.1\.0 must return an expunge.* returned a list"
    ):
        prepare("parity", tmp_path / "dataset")


def test_a_reader_cannot_take_the_name_of_a_built_in_one(declare, tmp_path):
    declare("readers", "digits", "no_such_module:read")
    assert prepare("digits", tmp_path / "dataset")["rows_train"] == 1438


def test_two_packages_with_one_name_are_both_named(reader, declare, tmp_path):
    declare("readers", "parity", "parity_reader:read")
    with pytest.raises(ConfigError, match=r"plugin_0 0\.1\.0 and plugin_1 0\.1\.0"):
        prepare("parity", tmp_path / "dataset")


@pytest.mark.parametrize("path", [None, "data/input.bin"])
def test_a_sweep_says_who_keeps_the_input_and_leaves_it(reader, tmp_path, path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/input.bin").write_bytes(b"as it was")
    prepare("parity", tmp_path / "data/dataset")
    assert config(tmp_path, "parity", path) == []
    targets = Targets.find(tmp_path, ["n0"], [], keep=False)
    (found,) = source(targets, None, load_config(tmp_path / "params.yaml").data)
    assert isinstance(found, NotPurgeable)
    assert (found.where, found.what.split()[0]) == (("source parity", "the") if path is None else (path, "1"))
    assert (tmp_path / "data/input.bin").read_bytes() == b"as it was"
