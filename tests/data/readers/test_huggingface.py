"""Data sets of the library `datasets` are read from what it writes, and from a local server that answers as the Hub."""

from __future__ import annotations

import http.server
import json
import os
import pickle
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from expunge.data.prepare import prepare
from expunge.data.schema import TEXT
from expunge.system.errors import DataError
from tests.data.readers.published import encoded, pictures
from tests.data.sources import prepared

datasets = pytest.importorskip("datasets")

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def refused(tmp_path: Path, source: str, message: str, **options: Any) -> None:
    with pytest.raises(DataError, match=message) as e:
        prepare(source, tmp_path / "dataset", raw_dir=tmp_path / "raw", **options)
    assert "\n" not in str(e.value)
    assert not (tmp_path / "dataset").exists()


def image_rows(n: int, seed: int = 0) -> Any:
    images = pictures(n, 8, seed=seed)
    features = datasets.Features(
        {
            "img": datasets.Image(),
            "fine": datasets.ClassLabel(names=["zebra", "ant", "bee"]),
            "coarse": datasets.ClassLabel(names=["big", "small"]),
            "person": datasets.Value("string"),
        }
    )
    rows = {
        "img": [Image.fromarray(i) for i in images],
        "fine": [i % 3 for i in range(n)],
        "coarse": [i % 2 for i in range(n)],
        "person": [None if i == 1 else f"p{i % 2}" for i in range(n)],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def test_a_saved_data_set_is_read_by_named_columns(tmp_path: Path) -> None:
    saved = datasets.DatasetDict(train=image_rows(5), test=image_rows(3, seed=1))
    saved.save_to_disk(tmp_path / "saved")
    source = f"hf:{tmp_path / 'saved'}"
    refused(tmp_path, source, r"2 columns could be the label \(fine, coarse\); set data\.columns\.label to one of")
    refused(
        tmp_path,
        source,
        "no column 'hair' .data.columns.subject.; its columns are img, fine",
        columns={"subject": "hair"},
    )
    refused(tmp_path, source, "unknown role 'lable'; the roles are image", columns={"lable": "fine"})
    refused(
        tmp_path,
        source,
        "column 'person' is of type Value, but Image is needed",
        columns={"label": "fine", "image": "person"},
    )
    options: dict[str, Any] = {"raw_dir": tmp_path / "raw", "columns": {"label": "fine", "subject": "person"}}
    dataset = prepared(tmp_path, source, **options)
    np.testing.assert_array_equal(dataset.images(), np.concatenate([pictures(5, 8), pictures(3, 8, seed=1)]))
    assert dataset.class_names == ["zebra", "ant", "bee"]
    assert dataset.labels().tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert dataset.sample_ids()[4:6] == ["train-4", "test-0"]
    first = dataset.digest
    assert prepared(tmp_path, source, **options).digest == first


def write_parquet(folder: Path, name: str, columns: dict[str, list[Any]]) -> bytes:
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / name)
    return (folder / name).read_bytes()


def texts(n: int, label: Any = None) -> dict[str, list[Any]]:
    return {"text": [f"text {i}" for i in range(n)], "label": label or [("no", "yes")[i % 2] for i in range(n)]}


def test_directories_of_parquet_and_of_csv_are_read(tmp_path: Path) -> None:
    write_parquet(tmp_path / "texts", "train-0.parquet", texts(10))
    source = f"hf:{tmp_path / 'texts'}"
    dataset = prepared(tmp_path, source, raw_dir=tmp_path / "raw", test_fraction=0.4)
    assert dataset.encoding == TEXT and dataset.class_names == ["no", "yes"]
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (6, 4)
    (tmp_path / "csv").mkdir()
    for split, n in (("train", 4), ("test", 2)):
        lines = "".join(f"line {i},{i % 2},id-{split}-{i}\n" for i in range(n))
        (tmp_path / "csv" / f"{split}.csv").write_text("review,label,id\n" + lines)
    (tmp_path / "second").mkdir()
    second = prepared(
        tmp_path / "second", f"hf:{tmp_path / 'csv'}", raw_dir=tmp_path / "raw", columns={"text": "review"}
    )
    assert second.sample_ids() == [f"id-{s}-{i}" for s, n in (("train", 4), ("test", 2)) for i in range(n)]


def test_an_unlabelled_test_split_gives_way_to_validation(tmp_path: Path) -> None:
    for split, label in (("train", None), ("validation", None), ("test", [-1] * 4)):
        rows = datasets.Dataset.from_dict(
            texts(4, label or [0, 1, 0, 1]),
            features=datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(2)}),
        )
        rows.save_to_disk(tmp_path / "saved" / split)
    (tmp_path / "saved" / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "test"]}))
    dataset = prepared(tmp_path, f"hf:{tmp_path / 'saved'}", raw_dir=tmp_path / "raw")
    assert dataset.sample_ids() == [f"{s}-{i}" for s in ("train", "validation") for i in range(4)]
    assert dataset.manifest["rows_test"] == 4


def test_pickles_and_files_outside_the_directory_are_refused(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "frames").mkdir()
    (tmp_path / "frames" / "train.pkl").write_bytes(pickle.dumps(Trap()))
    refused(tmp_path, f"hf:{tmp_path / 'frames'}", "frames: ")
    assert not (tmp_path / "executed").exists()
    (tmp_path / "private.png").write_bytes(encoded(pictures(1, 8)[0]))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "private.png")}] * 4, "label": [0, 1, 0, 1]}
    (tmp_path / "remote").mkdir()
    pq.write_table(pa.table(rows, schema=features.arrow_schema), tmp_path / "remote" / "train.parquet")
    refused(tmp_path, f"hf:{tmp_path / 'remote'}", "image of row 0 is a file outside the data set")


def test_what_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path, "hf:owner/name", r"names no commit, and branches and tags can move; write @ and the 40 digits")
    refused(tmp_path, "hf:owner/name@main", "names no commit")
    refused(tmp_path, "hf:name", "is neither hf:OWNER/NAME@COMMIT nor a directory")
    refused(tmp_path, "hf:./absent", "absent: no such directory")
    write_parquet(tmp_path / "damaged", "train.parquet", texts(10))
    file = tmp_path / "damaged" / "train.parquet"
    file.write_bytes(file.read_bytes()[:-30])
    refused(tmp_path, f"hf:{tmp_path / 'damaged'}", "damaged: .*; check the name")
    write_parquet(tmp_path / "held", "test.parquet", texts(10))
    refused(tmp_path, f"hf:{tmp_path / 'held'}", "no split 'train'; its splits are test")
    write_parquet(tmp_path / "unlabelled", "train.parquet", {"text": ["a", "b"], "stars": [1, 2]})
    refused(tmp_path, f"hf:{tmp_path / 'unlabelled'}", "no label column; set data.columns.label to one of text, stars")
    write_parquet(tmp_path / "gap", "train.parquet", texts(4, ["a", "b", None, "b"]))
    refused(tmp_path, f"hf:{tmp_path / 'gap'}", "row 2 has no label")


@contextmanager
def hub(files: dict[str, bytes]) -> Iterator[str]:
    """Serve `files` as data set `owner/name` at COMMIT, with the part of the Hub's interface that `datasets` uses."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            if not re.search(r"/owner/name(/|$)", path) or ("/revision/" in path and COMMIT not in path):
                code = "RevisionNotFound" if "/owner/name" in path else "RepoNotFound"
                return self.answer(b'{"error":"not found"}', 404, X_Error_Code=code, X_Error_Message="not found")
            if "/resolve/" in path:
                name = path.split(f"/resolve/{COMMIT}/")[-1]
                if name in files:
                    return self.answer(files[name], ETag=f'"{abs(hash(name))}"', X_Repo_Commit=COMMIT)
                return self.answer(b"", 404, X_Error_Code="EntryNotFound", X_Error_Message="no such file")
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            if "/tree/" in path:
                return self.answer(json.dumps(entries).encode(), Content_Type="application/json")
            info = {
                "id": "owner/name",
                "sha": COMMIT,
                "siblings": [{"rfilename": n} for n in files],
                "private": False,
                "tags": [],
                "downloads": 0,
            }
            return self.answer(json.dumps(info).encode(), Content_Type="application/json")

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            entries = [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
            self.answer(json.dumps(entries).encode(), Content_Type="application/json")

        do_HEAD = do_GET

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


PREPARE = """
import sys
from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.system.errors import DataError
try:
    prepare(sys.argv[1], sys.argv[2] + "/dataset", raw_dir=sys.argv[2] + "/raw")
    print(Dataset(sys.argv[2] + "/dataset").sample_ids())
except DataError as e:
    print("DataError:", e)
"""


@pytest.mark.slow
def test_a_pinned_commit_of_the_hub_is_read_and_a_missing_one_refused(tmp_path: Path) -> None:
    """A new process is needed, because the library reads the Hub's address from the environment on import."""
    files = {
        f"{split}.parquet": write_parquet(tmp_path / "made", f"{split}.parquet", texts(n))
        for split, n in (("train", 6), ("test", 2))
    }
    with hub(files) as endpoint:
        env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}

        def run(source: str) -> str:
            done = subprocess.run(
                [sys.executable, "-c", PREPARE, source, str(tmp_path)],
                env=env,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout.strip()

        missing = run(f"hf:owner/name@{'f' * 40}")
        assert missing.startswith(f"DataError: hf:owner/name@{'f' * 40}: ") and "\n" not in missing
        assert not (tmp_path / "dataset").exists()
        assert run(f"hf:owner/name@{COMMIT}") == str([f"train-{i}" for i in range(6)] + ["test-0", "test-1"])
