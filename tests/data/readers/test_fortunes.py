"""The reader of fortunes gives the quotations and authors of a sample, and refuses damaged files."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from expunge.data.dataset import Dataset
from expunge.data.readers import fortunes
from expunge.data.split import Split, split
from expunge.system.errors import DataError
from tests.data.sources import prepared, refused

SAMPLE = Path(__file__).parent / "samples" / "fortunes"
# File, position in the file, and author of each quotation, as a person reads the sample.
ROWS = """definitions 1 Bierce; definitions 2 Bierce; definitions 3 Bierce; definitions 4 Bierce; literature 1 Twain;
literature 2 Shakespeare; literature 3 Shakespeare; literature 4 Shakespeare; literature 5 Twain;
literature 6 Shakespeare; literature 7 Twain; people 1 Bierce; people 3 Nietzsche; people 4 Voltaire; people 5 Wilde;
people 6 Nietzsche; people 7 Wilde; people 8 Wilde; people 9 Plato"""
FULL = {
    "Bierce": "Ambrose Bierce",
    "Twain": "Mark Twain",
    "Shakespeare": "William Shakespeare",
    "Nietzsche": "Friedrich Nietzsche",
    "Wilde": "Oscar Wilde",
}


def pin(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the published checksums by those of the files in `directory`."""
    digests = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(directory.iterdir())}
    monkeypatch.setattr(fortunes, "SHA256", digests)


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(fortunes, "INSTALLED", tmp_path / "usr" / "share" / "games" / "fortunes")
    pin(SAMPLE, monkeypatch)
    return Path(shutil.copytree(SAMPLE, tmp_path / "files"))


def subjects(dataset: Dataset) -> list[str]:
    return dataset.table(["subject"])["subject"].to_pylist()


def test_the_sample_gives_the_quotations_and_authors_that_a_person_reads(tmp_path: Path, sample: Path) -> None:
    dataset = prepared(tmp_path, "fortunes", path=sample, test_fraction=0.25)
    expected = [row.split() for row in ROWS.replace("\n", " ").split("; ")]
    names = dataset.class_names
    found = [
        [names[label], str(int(sample_id.rsplit("-", 1)[1])), subject]
        for label, sample_id, subject in zip(dataset.labels(), dataset.sample_ids(), subjects(dataset), strict=True)
    ]
    assert found == [[file, place, FULL.get(last, last)] for file, place, last in expected]
    assert dataset.inputs()[4:6] == [
        "A banker is a fellow who lends you his umbrella when the sun is shining\nand wants it back the minute it "
        "begins to rain.",
        "A horse!  A horse!  My kingdom for a horse!",
    ]


def test_every_author_can_be_forgotten(tmp_path: Path, sample: Path) -> None:
    dataset = prepared(tmp_path, "fortunes", path=sample, test_fraction=0.25)
    who, train = subjects(dataset), dataset.splits() == "train"
    assert {w for w, t in zip(who, train, strict=True) if t} == set(who)
    (tmp_path / "who.txt").write_text("Oscar Wilde\nPlato\n")
    request = split(dataset, tmp_path / "split", selector="subjects", file=tmp_path / "who.txt")
    forgotten = [who[row] for row in Split(tmp_path / "split").rows("forget")]
    assert set(forgotten) == {"Oscar Wilde", "Plato"} and len(forgotten) == request["forget_rows"]
    retained = {who[row] for row in Split(tmp_path / "split").rows("retain")}
    assert retained == set(FULL.values()) - {"Oscar Wilde"} | {"Voltaire"}


def test_a_text_that_comes_again_is_left_out(tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(sample / "people", "a") as f:
        f.write("All generalizations are false, including this one.\n\t\t-- Mark Twain\n")
    pin(sample, monkeypatch)
    dataset = prepared(tmp_path, "fortunes", path=sample)
    assert len(dataset) == 19 and dataset.manifest["duplicates"]["rows"] == 0


def test_two_readings_give_the_same_bytes(tmp_path: Path, sample: Path) -> None:
    a, b = (prepared(tmp_path / name, "fortunes", path=sample, seed=3) for name in "ab")
    assert a.manifest == b.manifest


def test_damaged_and_missing_files_are_refused(tmp_path: Path, sample: Path) -> None:
    (sample / "people").write_bytes((SAMPLE / "people").read_bytes()[:-9])
    refused(tmp_path, r"files/people: content has sha256 \w+, not", "fortunes", sample)
    (sample / "people").unlink()
    refused(tmp_path, r"files/people: cannot be read \(No such file", "fortunes", sample)
    refused(tmp_path, "cannot be read", "fortunes", sample / "literature")


def test_an_installed_package_of_another_version_is_ignored(tmp_path: Path, sample: Path) -> None:
    fetched = Path(shutil.copytree(sample, tmp_path / "raw" / "fortunes"))
    installed = Path(shutil.copytree(sample, fortunes.INSTALLED))
    assert fortunes.locate(tmp_path / "raw") == installed
    (installed / "people").write_text("Newer.\n\t\t-- Plato\n")
    assert fortunes.locate(tmp_path / "raw") == fetched


def test_a_damaged_copy_is_kept_where_nothing_better_can_be_fetched(
    tmp_path: Path, sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = Path(shutil.copytree(sample, tmp_path / "raw" / "fortunes"))
    (fetched / "people").unlink()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        DataError, match=r"apt-get and dpkg are not installed.* Install the Debian packages fortunes-min and"
    ):
        fortunes.locate(tmp_path / "raw")
    assert [f.name for f in (tmp_path / "raw").iterdir()] == ["fortunes"]


@pytest.mark.slow
def test_the_published_fortunes_have_the_expected_rows_and_authors(tmp_path: Path) -> None:
    try:
        path = fortunes.locate(tmp_path / "raw")
    except DataError as e:
        pytest.skip(str(e))
    dataset = prepared(tmp_path, "fortunes", path=path)
    assert (dataset.manifest["rows_train"], dataset.manifest["rows_test"]) == (5038, 1259)
    assert len(set(subjects(dataset))) == 2784 and len(dataset.class_names) == 28
    assert subjects(dataset).count("Larry Wall") == 260
