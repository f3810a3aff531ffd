"""Test that a sweep removes erased rows from every kind of input.

The other rows keep their ids, split and labels when the input is read again.
"""

from __future__ import annotations

import io
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.sweep import sweep
from tests.sweep import people_workspace

ROWS = 30


def png(i: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (6, 5), dtype=np.uint8)).save(out, "png")
    return out.getvalue()


def folder(path):
    for i in range(ROWS):
        file = path / ("test" if i % 5 == 4 else "train") / "abc"[i % 3] / f"patient-{i:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(i))


def parquet(path, named: bool):
    path.mkdir(parents=True)
    for part in range(3):
        rows = range(part * 10, part * 10 + 10)
        columns = {"image": [png(i) for i in rows], "label": [i % 3 for i in rows]}
        if named:
            columns |= {
                "id": [f"row-{i:04d}" for i in rows],
                "split": ["test" if i % 5 == 4 else "train" for i in rows],
            }
        pq.write_table(pa.table(columns), path / f"part-{part}.parquet")


def text(path, suffix: str):
    path.mkdir(parents=True)
    delimiter = "," if suffix == "csv" else "\t"
    lines = [delimiter.join(("text", "label", "subject"))]
    for i in range(ROWS):
        line = f'"said, ""{i}"" twice"' if suffix == "csv" else f'said "{i}" twice'
        lines.append(delimiter.join((line, "abc"[i % 3], f"person-{i // 3:03d}")))
    (path / f"all.{suffix}").write_text("\n".join(lines) + "\n")


@pytest.fixture
def root(tmp_path):
    people_workspace.params(tmp_path)
    return tmp_path


def begin(root, source, path="data/source/it") -> dict:
    """Prepare the dataset from `path` and return its rows by id."""
    text = (root / "params.yaml").read_text().replace("source: npz ", f"source: {source} ")
    text = text.replace(f"path: {people_workspace.NPZ} ", f"path: {path} ")
    if source == "text":
        text = text.replace("name: resnet-small ", "name: sentence:x ")
    (root / "params.yaml").write_text(text)
    prepare(source, root / "data/dataset", path=root / path)
    return rows_of(root)


def rows_of(root) -> dict:
    dataset = Dataset(root / "data/dataset")
    rows = dataset.table(dataset.columns).to_pylist()
    return {row["sample_id"]: row for row in rows}


def erased_and_read_again(root, source, ids, path="data/source/it"):
    """Return the dataset's rows after a sweep, which must be the same after preparing the swept input again.

    The tombstones are removed before that, so that only the input itself keeps the rows out.
    """
    report = sweep(root, ids, apply=True)
    assert report.clean and ("data/source/it", "rows") in {(r.where, r.what) for r in report.purged}
    swept = rows_of(root)
    shutil.rmtree(root / "data/tombstones")
    prepare(source, root / "data/dataset", path=root / path)
    assert rows_of(root) == swept
    return swept


def test_erased_images_leave_a_folder_and_the_others_stay(root):
    folder(root / "data/source/it")
    before = begin(root, "image-folder")
    erased = [i for i in before if "0007" in i or "0010" in i]
    after = erased_and_read_again(root, "image-folder", erased)
    assert len(erased) == 2 and after == {i: r for i, r in before.items() if i not in erased}
    assert not list((root / "data/source/it").rglob("*0007*"))


@pytest.mark.parametrize("named", [True, False])
def test_erased_rows_leave_parquet_files_and_the_others_stay(root, named):
    parquet(root / "data/source/it", named)
    before = begin(root, "parquet")
    files = sorted((root / "data/source/it").iterdir())
    inodes = [f.stat().st_ino for f in files]
    erased = sorted(before)[11:13]
    after = erased_and_read_again(root, "parquet", erased)
    assert after == {i: r for i, r in before.items() if i not in erased}
    same_file = [f.stat().st_ino == inode for f, inode in zip(files, inodes, strict=True)]
    # If ids and split followed from the position of a row, every file must now state them. Otherwise only the file
    # that held the rows is written.
    assert same_file == ([True, False, True] if named else [False] * 3)


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_erased_rows_leave_text_files_and_the_others_stay(root, suffix):
    text(root / "data/source/it", suffix)
    before = begin(root, "text")
    erased = sorted(before)[3:5]
    after = erased_and_read_again(root, "text", erased)
    assert after == {i: r for i, r in before.items() if i not in erased}


def test_an_input_without_write_permission_is_reported_to_its_owner(root):
    folder(root / "data/source/it")
    before = begin(root, "image-folder")
    erased = sorted(before)[:1]
    (root / "data/source/it" / erased[0]).chmod(0o444)
    report = sweep(root, erased, apply=True)
    assert [(e.where, e.who) for e in report.not_purgeable] == [("data/source/it", "the owner of that file")]
    assert erased[0] not in rows_of(root) and (root / "data/source/it" / erased[0]).exists()
    prepare("image-folder", root / "data/dataset", path=root / "data/source/it")
    assert erased[0] not in rows_of(root)  # The tombstones keep it out.


def test_an_installed_source_is_reported_and_not_changed(root):
    text = (root / "params.yaml").read_text().replace("source: npz ", "source: digits ")
    (root / "params.yaml").write_text(text.replace(f"path: {people_workspace.NPZ} ", "path: null "))
    prepare("digits", root / "data/dataset")
    report = sweep(root, ["digit-0003"], apply=True)
    assert report.clean and [e.where for e in report.not_purgeable] == ["source digits"]
    prepare("digits", root / "data/dataset")
    assert "digit-0003" not in rows_of(root) and len(rows_of(root)) == 1796


def test_work_in_progress_and_workspaces_below_are_swept_too(root):
    folder(root / "data/source/it")
    before = begin(root, "image-folder")
    (root / ".expunge/train/x").mkdir(parents=True)
    (root / ".expunge/train/x/state").write_text("weights")
    for name in ("demo", "other"):
        shutil.copytree(root / "data/dataset", root / ".expunge" / name / "data/dataset")
    (root / ".expunge/records").mkdir()
    sweep(root, sorted(before)[:1], apply=True)
    left = sorted(p.name for p in (root / ".expunge").iterdir())
    assert left == ["records", "sweep"]
