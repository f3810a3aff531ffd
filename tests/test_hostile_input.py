"""Every reader either reads a damaged or hostile file or soon raises an ExpungeError that names the file.

`EXPUNGE_FUZZ_EXAMPLES=2000 pytest tests/test_hostile_input.py` tries more files.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from expunge.core import Moments
from expunge.data.dataset import Dataset
from expunge.data.images import decode
from expunge.data.prepare import prepare
from expunge.data.selectors import read_values
from expunge.data.split import Split
from expunge.data.tombstones import Tombstones
from expunge.erasure.certificate import known_entries, verify
from expunge.features.store import FeatureStore
from expunge.ledger.keys import PublicKey, signing_key
from expunge.ledger.ledger import Ledger
from expunge.models.checkpoint import load_classifier, save_classifier
from expunge.models.weights import read_weights
from expunge.models.zoo import build
from expunge.system.errors import ExpungeError
from expunge.system.files import read_manifest, staged_dir, write_json, write_manifest
from tests.sweep import people_workspace

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")  # Pillow warns of bad tags.
EXAMPLES = int(os.environ.get("EXPUNGE_FUZZ_EXAMPLES", "25"))
SECONDS = 20.0
FUZZ = settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.large_base_example],
)  # fmt: skip


def ours(read: Callable[[], Any], *names: str) -> Any:
    """Return what `read` returns, or None if it raised an ExpungeError whose message has one of `names`.

    The test fails on any other error, and if reading takes long.
    """
    start = time.process_time()
    try:
        found = read()
    except ExpungeError as e:
        assert any(name in str(e) for name in names), f"{e!r} names none of {names}"
        found = None
    assert time.process_time() - start < SECONDS
    return found


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """Draw `content` that is cut off, or has bytes changed, doubled, inserted or removed."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(len(out) - 1, 0)))
        how = draw(st.sampled_from(["cut", "set", "set", "flip", "insert", "remove", "double", "zero"]))
        if how == "cut":
            del out[at:]
        elif how == "insert":
            out[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif how == "remove":
            del out[at : at + draw(st.integers(1, 64))]
        elif how == "double":
            out[at:at] = out[at : at + 32]
        elif how == "zero":
            out[at : at + 16] = bytes(len(out[at : at + 16]))
        elif out:
            out[at] = draw(st.integers(0, 255)) if how == "set" else out[at] ^ (1 << draw(st.integers(0, 7)))
    return bytes(out)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from([10**400, -1, 2**63, float("nan"), "../../x", "/etc/passwd", "\0", "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip


@st.composite
def edited(draw: st.DrawFn, value: Any) -> Any:
    """Draw `value` with one or two places of its tree replaced or removed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 2))):
        inner, at = value, None
        while isinstance(inner, dict | list) and inner and (at is None or draw(st.booleans())):
            outer = inner
            at = draw(st.sampled_from(sorted(outer) if isinstance(outer, dict) else range(len(outer))))
            inner = outer[at]
        if at is None:
            return draw(JSON)
        if draw(st.booleans()):
            outer[at] = draw(JSON)
        else:
            del outer[at]
    return value


# Pictures.


def picture(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    pixels = np.random.default_rng(1).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(out, kind)
    return out.getvalue()


PICTURES = [picture(k) for k in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM")]
PICTURES += [picture("GIF", "P"), picture("PNG", "LA"), picture("PNG", "P"), picture("TIFF", "I;16")]


@FUZZ
@given(content=st.sampled_from(PICTURES).flatmap(damaged) | st.binary(max_size=64))
def test_damaged_pictures_are_read_or_refused(content):
    pixels = ours(lambda: decode(content, "cats/1.png"), "cats/1.png")
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.ndim == 3)


@pytest.mark.parametrize(
    ("name", "content", "reads"),
    [
        ("1.jpg", PICTURES[0], True),  # It is a PNG, and only the content counts.
        ("1.png", b"%PDF-1.4 " + PICTURES[0], False),  # The file has two formats.
        ("1.png", PICTURES[0] + b"<script>alert(1)</script>", True),
        ("1.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", False),
        ("1.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", False),  # Pillow would start an interpreter.
        ("1.png", b"", False),
        ("1.svg", PICTURES[0], False),
    ],
)
def test_files_that_are_not_what_their_names_say_are_read_or_refused(name, content, reads, tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "in" / kind).mkdir(parents=True)
        for i in range(3):
            (tmp_path / "in" / kind / f"ok{i}.png").write_bytes(PICTURES[0])
    (tmp_path / "in/dog" / name).write_bytes(content)
    result = ours(
        lambda: prepare("image-folder", tmp_path / "out", path=tmp_path / "in", test_fraction=0.4), f"dog/{name}"
    )
    assert (result is not None) == reads == (tmp_path / "out").exists()


# Archives and tables.


def arrays() -> dict[str, np.ndarray]:
    return {
        "x": np.arange(12 * 9, dtype=np.uint8).reshape(12, 3, 3), "y": np.arange(12) % 2,
        "ids": np.array([f"r{i}" for i in range(12)]), "split": np.array(["train", "test", "train"] * 4),
    }  # fmt: skip


def archive(**changes: np.ndarray) -> bytes:
    out = io.BytesIO()
    np.savez(out, **(arrays() | changes))
    return out.getvalue()


def prepared(source: str, folder: Path, name: str, content: bytes) -> Any:
    folder.mkdir(exist_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    (folder / name).write_bytes(content)
    result = ours(lambda: prepare(source, folder / "out", path=folder / name, test_fraction=0.4), name, f"{source}: ")
    if result is not None:
        Dataset(folder / "out").inputs()
    assert not list(folder.glob(".*.tmp"))
    return result


ODD = [
    np.array(3), np.zeros(12), np.full(12, np.nan), np.full(12, np.inf), np.zeros((12, 3, 3)),
    np.zeros((0, 3, 3), np.uint8), np.zeros((12, 0, 3), np.uint8), np.zeros((12, 3, 3, 5), np.uint8),
    np.zeros((11, 3, 3), np.uint8), np.zeros(12, bool), np.array(["a"] * 12), np.array([b"\xff"] * 12),
    np.zeros(12, "M8[s]"), np.zeros(12, "c16"), np.arange(12) - 1, np.full(12, 2**40), np.zeros(12, [("a", "u1")]),
    np.array(["x\0y"] * 12), np.array(["\ud800"] * 12), np.zeros((12, 2), int),
]  # fmt: skip


@FUZZ
@given(content=damaged(archive()))
def test_damaged_npz_archives_are_read_or_refused(tmp_path, content):
    prepared("npz", tmp_path / "a", "x.npz", content)


@FUZZ
@given(name=st.sampled_from(["x", "y", "ids", "split", "subjects", "class_names", "x_train"]), odd=st.sampled_from(ODD))
def test_npz_archives_of_wrong_arrays_are_read_or_refused(tmp_path, name, odd):
    prepared("npz", tmp_path / "a", "x.npz", archive(**{name: odd}))


def table(**changes: pa.Array) -> bytes:
    columns: dict[str, Any] = {
        "image": pa.array([PICTURES[i % 2] for i in range(12)]), "label": pa.array([i % 3 for i in range(12)]),
        "sample_id": pa.array([f"r{i}" for i in range(12)]), "split": pa.array(["train", "test", "train"] * 4),
    }  # fmt: skip
    out = io.BytesIO()
    pq.write_table(pa.table(columns | changes), out)
    return out.getvalue()


COLUMNS = [
    pa.array([0.5] * 12), pa.array([float("nan")] * 12), pa.array([float("inf")] * 12), pa.nulls(12),
    pa.array([True] * 12), pa.array([[1, 2]] * 12), pa.array([None, "a"] * 6), pa.array([{"bytes": PICTURES[0]}] * 12),
    pa.array([{"path": "x"}] * 12), pa.array([{"bytes": None}] * 12), pa.array([b""] * 12),
    pa.array([b"\xff\xfe"] * 12), pa.array([""] * 12), pa.array([-1] * 12), pa.array([2**40] * 12),
    pa.array(["a\nb"] * 12), pa.array([[[1.0]], []] * 6), pa.array(["x"] * 12).dictionary_encode(),
    pa.array([[0.0] * 3] * 12, pa.list_(pa.float32(), 3)), pa.array([i for i in range(12)], pa.timestamp("s")),
    pa.array([1] * 12, pa.decimal128(5, 2)), pa.array([[("k", 1)]] * 12, pa.map_(pa.string(), pa.int64())),
]  # fmt: skip
ROLES = ["image", "label", "sample_id", "split", "subject"]


@FUZZ
@given(content=damaged(table()))
def test_damaged_parquet_tables_are_read_or_refused(tmp_path, content):
    prepared("parquet", tmp_path / "a", "x.parquet", content)


@FUZZ
@given(name=st.sampled_from(ROLES), odd=st.sampled_from(COLUMNS))
def test_parquet_tables_of_wrong_columns_are_read_or_refused(tmp_path, name, odd):
    prepared("parquet", tmp_path / "a", "x.parquet", table(**{name: odd}))


CSV = b'text,label,sample_id\n"one, two",a,1\nthree,b,2\nfour,a,3\nfive,b,4\n'


@FUZZ
@given(content=damaged(CSV) | st.binary(max_size=40), suffix=st.sampled_from(["csv", "tsv"]))
def test_damaged_text_files_are_read_or_refused(tmp_path, content, suffix):
    prepared("text", tmp_path / "a", f"x.{suffix}", content)


@FUZZ
@given(name=st.sampled_from(["text", "label", "sample_id", "split", "subject"]), odd=st.sampled_from(COLUMNS))
def test_text_tables_of_wrong_columns_are_read_or_refused(tmp_path, name, odd):
    prepared("text", tmp_path / "a", "x.parquet", table(**({"text": pa.array(["a b"] * 12)} | {name: odd})))


# Lists of ids.


@FUZZ
@given(
    content=damaged(b"sample_id,salt\nr1,00ff\nr2,\n") | st.binary(max_size=40) | st.text(max_size=20).map(str.encode),
    suffix=st.sampled_from(["txt", "csv"]),
)
def test_damaged_lists_give_distinct_texts_or_are_refused(tmp_path, content, suffix):
    (tmp_path / f"ids.{suffix}").write_bytes(content)
    values = ours(lambda: read_values(tmp_path / f"ids.{suffix}", "sample_id"), f"ids.{suffix}")
    assert values is None or (values and all(isinstance(v, str) for v in values) and len(set(values)) == len(values))


@FUZZ
@given(content=damaged(table()) | st.sampled_from(COLUMNS).map(lambda c: table(sample_id=c)))
def test_damaged_lists_in_parquet_are_read_or_refused(tmp_path, content):
    (tmp_path / "ids.parquet").write_bytes(content)
    ours(lambda: read_values(tmp_path / "ids.parquet", "sample_id"), "ids.parquet")


# Files that one stage reads from another.


@pytest.fixture(scope="module")
def workspace(tmp_path_factory) -> Path:
    root = people_workspace.workspace(
        tmp_path_factory.mktemp("hostile") / "workspace", [5], rows=48, people=24, shard=24
    )
    classifier = build("resnet-small", 3, (8, 8, 1), seed=1)
    with staged_dir(root / "models/original") as out:
        save_classifier(out, classifier)
        write_manifest(out, "test")
    return root


def everything(folder: Path) -> None:
    store = FeatureStore(folder, verify=True)
    store.z(), store.z(np.arange(3)), store.column("label")


def all_rows(folder: Path) -> None:
    dataset = Dataset(folder)
    dataset.inputs(), dataset.labels(), dataset.splits(), dataset.sample_ids(), dataset.digests()
    list(dataset.iter_batches(7))


def all_parts(folder: Path) -> None:
    split = Split(folder)
    split.rows("forget"), split.scored_rows("retain"), split.digest_of(split.rows("retain"), "x")


READERS: dict[str, Callable[[Path], object]] = {
    "data/dataset": all_rows, "data/split": all_parts, "data/features/original": everything,
    "models/original": load_classifier,
}  # fmt: skip


@pytest.mark.parametrize("place", READERS)
@FUZZ
@given(data=st.data())
def test_damaged_manifests_are_read_or_refused(workspace, place, data):
    """Either bytes of the manifest are damaged, or values in it are edited."""
    file = workspace / place / "manifest.json"
    whole = file.read_bytes()
    tree = data.draw(damaged(whole) | edited(json.loads(whole)))
    try:
        file.write_bytes(tree if isinstance(tree, bytes) else json.dumps(tree).encode())
        ours(lambda: READERS[place](workspace / place), place)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize("place", READERS)
@FUZZ
@given(data=st.data())
def test_damaged_files_with_a_fitting_manifest_are_read_or_refused(workspace, place, data):
    """The manifest's digests match the damaged file, so only the reader itself can notice."""
    folder = workspace / place
    name = data.draw(st.sampled_from(sorted(p.name for p in folder.iterdir() if p.name != "manifest.json")))
    file, manifest = folder / name, json.loads((folder / "manifest.json").read_text())
    whole, report = file.read_bytes(), (folder / "manifest.json").read_bytes()
    changed = data.draw(damaged(whole) | (edited(json.loads(whole)) if name.endswith(".json") else damaged(whole)))
    try:
        file.write_bytes(changed if isinstance(changed, bytes) else json.dumps(changed).encode())
        fields = {k: v for k, v in manifest.items() if k not in ("schema", "files", "producer")}
        rows = {n: e["rows"] for n, e in manifest["files"].items() if "rows" in e}
        groups = {n: e["groups"] for n, e in manifest["files"].items() if "groups" in e}
        write_manifest(folder, "test", rows=rows, groups=groups, **fields)
        ours(lambda: READERS[place](folder), place)
    finally:
        file.write_bytes(whole)
        (folder / "manifest.json").write_bytes(report)


@FUZZ
@given(data=st.data())
def test_damaged_tensor_files_are_read_or_refused(workspace, tmp_path, data):
    """Moments, tombstones and weights are stored as files of tensors."""
    weights = (workspace / "models/original/model.safetensors").read_bytes()
    moments = (workspace / "data/features/original/moments.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(data.draw(damaged(weights)))
    ours(lambda: read_weights(tmp_path / "w.safetensors"), "w.safetensors")
    (tmp_path / "m.safetensors").write_bytes(data.draw(damaged(moments)))
    ours(lambda: Moments.load(tmp_path / "m.safetensors"), "m.safetensors")
    shutil.rmtree(tmp_path / "tombstones", ignore_errors=True)
    whole = Tombstones.open(tmp_path / "tombstones").plus(["a"], [b"b"])
    (tmp_path / "tombstones/rows.safetensors").write_bytes(data.draw(damaged(whole.to_bytes())))
    ours(lambda: Tombstones.read(tmp_path / "tombstones"), "rows.safetensors")


@FUZZ
@given(data=st.data())
def test_damaged_torch_files_are_read_or_refused(tmp_path, data):
    import torch

    out = io.BytesIO()
    torch.save({"a": torch.zeros(2, 3)}, out)
    (tmp_path / "w.pt").write_bytes(data.draw(damaged(out.getvalue()) | st.binary(max_size=40)))
    ours(lambda: read_weights(tmp_path / "w.pt"), "w.pt")


# Signed documents.


@pytest.fixture(scope="module")
def signed(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("signed")
    key = signing_key(home)
    body = {
        "schema": 1,
        "request": {"id": "R-1"},
        "ledger": {"previous": "sha256:0"},
        "clock": [],
        "metrics": [0.5, None],
    }
    (home / "records/certificates/R-1").mkdir(parents=True)
    signature = key.sign(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
    document = {"certificate": body, "key": key.public.fingerprint, "signature": signature}
    write_json(home / "records/certificates/R-1/certificate.json", document)
    ledger = Ledger(home / "ledger.jsonl")
    for number in range(3):
        ledger.append("note", {"number": number, "inner": {"a": [1, None]}})
    return home


NESTED = b'{"certificate":' * 100_000


@FUZZ
@given(data=st.data())
def test_a_changed_certificate_is_never_taken_for_the_signed_one(signed, tmp_path, data):
    folder, key = signed / "records/certificates", PublicKey.read(signed / "records/keys/signing.pub.pem")
    whole = (folder / "R-1/certificate.json").read_bytes()
    body = verify(folder / "R-1/certificate.json", key)
    changed = data.draw(damaged(whole) | edited(json.loads(whole)) | st.just(NESTED))
    (tmp_path / "R-2").mkdir(exist_ok=True)
    (tmp_path / "R-2/certificate.json").write_bytes(
        changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    )
    found = ours(lambda: verify(tmp_path / "R-2/certificate.json", key), "certificate.json")
    assert found is None or found == body
    ours(lambda: known_entries(tmp_path), "certificate.json")


@FUZZ
@given(data=st.data())
def test_a_changed_ledger_is_never_taken_for_the_signed_one(signed, tmp_path, data):
    place = tmp_path / "copy"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(signed, place)
    name = data.draw(st.sampled_from(["ledger.jsonl", "ledger.head.json", "records/keys/signing.pub.pem", "one entry"]))
    if name == "one entry":
        lines = (place / "ledger.jsonl").read_text().splitlines()
        at = data.draw(st.integers(0, 2))
        lines[at] = json.dumps(data.draw(edited(json.loads(lines[at]))))
        (place / "ledger.jsonl").write_text("".join(f"{line}\n" for line in lines))
    else:
        (place / name).write_bytes(data.draw(damaged((place / name).read_bytes())))
    entries = [e.facts for e in Ledger(signed / "ledger.jsonl").entries()]
    ours(lambda: PublicKey.read(place / "records/keys/signing.pub.pem"), "signing.pub.pem")
    ledger = Ledger(place / "ledger.jsonl")
    if ours(ledger.verify, "ledger.", "signing.pub.pem") is not None:
        assert [e.facts for e in ledger.entries()] == entries
    with suppress(ExpungeError):
        ledger.append("note", {"number": 9})


def test_deep_huge_and_empty_json_and_folders_are_refused(tmp_path):
    """These contents overload or confuse a parser, whatever values the reader expects."""
    for number, content in enumerate(
        [b"[" * 200_000, b"1" * 10_000, b"\xff\xfe", b"[]", b"null", b"NaN", b'{"schema": 1}']
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "manifest.json").write_bytes(content)
        assert ours(lambda folder=folder: read_manifest(folder), str(folder)) is None
    (tmp_path / "certificate.json").mkdir()
    key = signing_key(tmp_path).public
    assert ours(lambda: verify(tmp_path / "certificate.json", key), "certificate.json") is None
