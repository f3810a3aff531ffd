"""The emoji reader gives pictures, labels and subjects of a sample, and refuses archives it does not expect."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from expunge.data.dataset import Dataset
from expunge.data.readers import emoji
from expunge.data.split import Split, split
from expunge.system.errors import DataError
from expunge.system.files import sha256
from tests.data.sources import prepared, refused

SAMPLE = Path(__file__).parent / "samples" / "emoji"
Change = Callable[[dict[str, bytes]], None]


def pack(directory: Path, monkeypatch: pytest.MonkeyPatch, change: Change = lambda members: None) -> Path:
    """Write the archives of both vendors from the sample, and pin their own sha256. `change` edits the members."""
    directory.mkdir(parents=True, exist_ok=True)
    digests = {}
    for vendor in ("google", "twitter"):
        members = {"package/emoji.json": (SAMPLE / "emoji.json").read_bytes(), "package/LICENSE": b"..."}
        for picture in sorted((SAMPLE / vendor).iterdir()):
            members[f"package/img/{vendor}/64/{picture.name}"] = picture.read_bytes()
        change(members)
        file = directory / f"emoji-datasource-{vendor}-16.0.0.tgz"
        with tarfile.open(file, "w:gz") as archive:
            for name, content in members.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        digests[vendor] = sha256(file)
    monkeypatch.setattr(emoji, "SHA256", digests)
    return directory


def subjects(dataset: Dataset) -> dict[str, str]:
    return dict(zip(dataset.sample_ids(), dataset.table(["subject"])["subject"].to_pylist(), strict=True))


def test_the_sample_gives_the_pictures_labels_and_subjects_that_a_person_sees(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepared(tmp_path, "emoji", path=pack(tmp_path / "files", monkeypatch))
    assert subjects(dataset) == {
        "google-2764-fe0f": "heart",
        "twitter-2764-fe0f": "heart",
        "google-1faf1": "rightwards_hand",
        "twitter-1faf1": "rightwards_hand",
        "google-1faf1-1f3fb": "rightwards_hand",
        "twitter-1faf1-1f3fb": "rightwards_hand",
        "google-1f3c3": "runner",
        "google-1f3c3-200d-2642-fe0f": "runner",  # Its table says that the man replaces the runner.
        "google-1f34e": "apple",
        "twitter-1f34e": "apple",
        "google-26aa": "white_circle",
        "twitter-26aa": "white_circle",
        "google-2b1b": "black_large_square",
        "twitter-2b1b": "black_large_square",
        "twitter-1f1e7-1f1fb": "flag-bv",  # It is the flag of Norway, a shade lighter.
        "twitter-1f1f3-1f1f4": "flag-bv",
        "twitter-1f1f8-1f1ef": "flag-bv",
    }
    groups = {i: dataset.class_names[label] for i, label in zip(dataset.sample_ids(), dataset.labels(), strict=True)}
    assert groups["google-1f34e"] == "Food & Drink" and groups["twitter-2764-fe0f"] == "Smileys & Emotion"
    assert groups["twitter-1faf1"] == "People & Body" and groups["twitter-1f1f8-1f1ef"] == "Flags"
    assert dataset.image_shape == (64, 64, 3)


@pytest.mark.parametrize("name", ["google/1f34e", "google/26aa", "google/2b1b", "twitter/2b1b", "twitter/1faf1-1f3fb"])
def test_pictures_are_laid_over_white_whatever_their_mode(name: str) -> None:
    data = (SAMPLE / f"{name}.png").read_bytes()
    rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:] / 255
    over_white = rgba[..., :3] * alpha + 255 * (1 - alpha)
    assert np.abs(emoji._pixels(data, name) - over_white).max() <= 1


def test_every_character_can_be_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = prepared(tmp_path, "emoji", path=pack(tmp_path / "files", monkeypatch), test_fraction=0.4)
    who, train = list(subjects(dataset).values()), dataset.splits() == "train"
    assert {w for w, t in zip(who, train, strict=True) if t} == set(who)
    (tmp_path / "who.csv").write_text("subject\nrunner\nflag-bv\n")
    split(dataset, tmp_path / "split", selector="subjects", file=tmp_path / "who.csv", duplicates="refuse")
    forget = Split(tmp_path / "split").rows("forget")
    assert {who[row] for row in forget} == {"runner", "flag-bv"}
    assert all(train[row] for row in forget)


def without(name: str) -> Change:
    return lambda members: members.pop(name, None) and None


def with_content(name: str, content: bytes) -> Change:
    return lambda members: members.update({name: content}) if name in members else None


def table_with(**fields: object) -> Change:
    rows = json.loads((SAMPLE / "emoji.json").read_text())
    rows[1].update(fields)
    return with_content("package/emoji.json", json.dumps(rows).encode())


APPLE = "package/img/twitter/64/1f34e.png"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(APPLE), f"twitter-16.0.0.tgz: lacks {APPLE}"),
        (with_content(APPLE, (SAMPLE / "twitter/1f34e.png").read_bytes()[:700]), f"{APPLE}: not a readable image"),
        (with_content(APPLE, b""), f"{APPLE}: not a readable image"),
        (without("package/emoji.json"), "package/emoji.json cannot be read"),
        (with_content("package/emoji.json", b"[{"), "package/emoji.json cannot be read"),
        (table_with(category="Plants"), "unknown group 'Plants'"),
        (table_with(image="../../../../etc/passwd"), "lacks package/img/google/64/../../../../etc/passwd"),
    ],
)
def test_archives_with_unexpected_members_are_refused(tmp_path, monkeypatch, change: Change, message: str) -> None:
    refused(tmp_path, message, "emoji", pack(tmp_path / "files", monkeypatch, change))


def test_a_picture_of_another_size_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = io.BytesIO()
    Image.new("RGB", (32, 64)).save(small, "PNG")
    files = pack(tmp_path / "files", monkeypatch, with_content(APPLE, small.getvalue()))
    refused(tmp_path, "the image has 32 x 64 pixels, but 64 x 64 are needed", "emoji", files)


def test_a_truncated_or_missing_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack(tmp_path / "files", monkeypatch) / "emoji-datasource-twitter-16.0.0.tgz"
    file.write_bytes(file.read_bytes()[:-2000])
    refused(tmp_path, r"twitter-16\.0\.0\.tgz: content has sha256 \w+, not", "emoji", file.parent)
    emoji.SHA256["twitter"] = sha256(file)
    refused(tmp_path, r"twitter-16\.0\.0\.tgz: the archive is damaged", "emoji", file.parent)
    file.unlink()
    refused(tmp_path, r"twitter-16\.0\.0\.tgz: no such file; write it with `npm pack", "emoji", file.parent)


def test_a_link_in_an_archive_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pack(tmp_path / "files", monkeypatch, without(APPLE)) / "emoji-datasource-twitter-16.0.0.tgz"
    with tarfile.open(file) as old:
        members = [(m, old.extractfile(m).read()) for m in old.getmembers()]  # type: ignore[union-attr]
    with tarfile.open(file, "w:gz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo(APPLE)
        link.type, link.linkname = tarfile.SYMTYPE, str(SAMPLE / "twitter" / "1f34e.png")
        archive.addfile(link)
    emoji.SHA256["twitter"] = sha256(file)
    refused(tmp_path, f"lacks {APPLE}", "emoji", file.parent)


def test_archives_that_were_fetched_before_need_no_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "raw" / "emoji", monkeypatch)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert len(prepared(tmp_path, "emoji", raw_dir=tmp_path / "raw")) == 17


@pytest.mark.slow
def test_the_published_emoji_have_the_expected_rows_and_subjects(tmp_path: Path) -> None:
    try:
        for vendor in emoji.SHA256:
            emoji.archive(vendor, None, tmp_path)
    except DataError as e:
        pytest.skip(str(e))
    dataset = prepared(tmp_path, "emoji", path=tmp_path / "emoji")
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (6049, 1513)
    assert len(set(subjects(dataset).values())) == 1831
    assert np.bincount(dataset.labels()).tolist() == [170, 318, 540, 262, 528, 4522, 338, 448, 436]
