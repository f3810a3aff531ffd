"""Test atomic outputs: after a failure there is the old file or directory, the new one, or none, but never a part."""

import json
import os

import pytest

from expunge.system.errors import ManifestError
from expunge.system.files import (
    create_durable,
    digest_of,
    read_json,
    read_manifest,
    sha256,
    staged_dir,
    write_durable,
    write_json,
    write_manifest,
    write_texts,
)


def make(path, text="one"):
    with staged_dir(path) as staging:
        (staging / "a.txt").write_text(text)
        write_manifest(staging, "test", rows={"a.txt": 3}, extra=7)


def test_a_directory_survives_a_round_trip(tmp_path):
    make(tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest["extra"] == 7
    assert manifest["files"]["a.txt"] == {"rows": 3, "bytes": 3, "sha256": sha256(tmp_path / "out" / "a.txt")}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_same_content_gives_the_same_bytes(tmp_path):
    make(tmp_path / "one")
    make(tmp_path / "two")
    assert (tmp_path / "one" / "manifest.json").read_bytes() == (tmp_path / "two" / "manifest.json").read_bytes()


def test_a_failure_leaves_the_old_directory(tmp_path):
    make(tmp_path / "out", "old")
    with pytest.raises(RuntimeError), staged_dir(tmp_path / "out") as staging:
        (staging / "a.txt").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "a.txt").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_success_replaces_the_old_directory(tmp_path):
    make(tmp_path / "out", "old")
    make(tmp_path / "out", "new")
    assert (tmp_path / "out" / "a.txt").read_text() == "new"


def test_a_folder_of_texts_holds_nothing_else(tmp_path):
    write_texts(tmp_path / "out", {"a.csv": "1\n", "b.csv": "2\n"})
    write_texts(tmp_path / "out", {"a.csv": "3\n"})
    assert {p.name: p.read_text() for p in tmp_path.rglob("*") if p.is_file()} == {"a.csv": "3\n"}


def test_without_a_manifest_no_directory_appears(tmp_path):
    with pytest.raises(ManifestError, match=r"wrote no manifest\.json"), staged_dir(tmp_path / "out"):
        pass
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: (d / "a.txt").write_text("two"), r"a\.txt: differs from its manifest"),
        (lambda d: (d / "a.txt").write_text("longer"), r"a\.txt: differs from its manifest"),
        (lambda d: (d / "a.txt").unlink(), r"a\.txt: is missing"),
        (lambda d: (d / "b.txt").write_text("x"), r"b\.txt: is not in the manifest"),
        (lambda d: (d / "manifest.json").unlink(), r"no manifest\.json"),
        (lambda d: (d / "manifest.json").write_text("{"), r"not valid JSON"),
        (lambda d: write_json(d / "manifest.json", {"schema": 99, "files": {}}), r"schema 99"),
    ],
)
def test_a_damaged_directory_is_refused_by_name(tmp_path, damage, said):
    make(tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(ManifestError, match=said):
        read_manifest(tmp_path / "out")


def test_without_verify_only_sizes_count(tmp_path):
    make(tmp_path / "out")
    (tmp_path / "out" / "a.txt").write_text("two")
    assert read_manifest(tmp_path / "out", verify=False)["files"]["a.txt"]["bytes"] == 3
    with pytest.raises(ManifestError, match=r"a\.txt"):
        read_manifest(tmp_path / "out")


def test_json_has_sorted_keys_and_refuses_values_that_are_not_finite(tmp_path):
    write_json(tmp_path / "x.json", {"b": 1, "a": 2})
    assert list(json.loads((tmp_path / "x.json").read_text())) == ["a", "b"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert read_json(tmp_path / "x.json") == {"a": 2, "b": 1}


def test_a_digest_ignores_the_order_of_keys():
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})


def test_a_durable_file_is_readable_by_its_owner_alone_by_default(tmp_path):
    before = os.umask(0o022)
    try:
        write_durable(tmp_path / "new" / "list", b"a")
        write_durable(tmp_path / "new" / "list", b"b")
        write_durable(tmp_path / "new" / "shared", b"c", mode=0o666)
    finally:
        os.umask(before)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "new").iterdir()}
    assert modes == {"list": 0o600, "shared": 0o644}
    assert (tmp_path / "new" / "list").read_bytes() == b"b"


def test_the_next_write_removes_what_a_killed_one_left(tmp_path, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            write_durable(tmp_path / "list", b"a person")
    write_durable(tmp_path / "list", b"b")
    assert [p.name for p in tmp_path.iterdir()] == ["list"] and (tmp_path / "list").read_bytes() == b"b"


def test_of_two_that_create_a_file_the_first_counts(tmp_path):
    assert create_durable(tmp_path / "key", b"first")
    assert not create_durable(tmp_path / "key", b"second")
    assert [p.name for p in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").read_bytes() == b"first" and (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_key_is_whole_or_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        create_durable(tmp_path / "key", b"half")
    assert not (tmp_path / "key").exists()
