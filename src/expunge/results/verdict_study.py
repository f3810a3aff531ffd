"""python -m expunge.results.verdict_study: calibrate the verdict.

It is calibrated over many models that forgot nothing and some that never knew.

Goes on where it was ended: the weights of a trial are one file, what was judged of it another. `--judge` judges again
what is trained, after a change of the statistics.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from expunge.data.readers.digits import read_digits
from expunge.data.readers.fashion_mnist import read_fashion_mnist
from expunge.results.study_models import StudyRecipe
from expunge.results.study_page import page, summarise
from expunge.results.study_trials import StudyData, judge_trial, load_networks, train_trial
from expunge.system.errors import DataError
from expunge.system.files import write_json, write_text
from expunge.system.progress import log_message

MODULE = "expunge.results.verdict_study"
HOME = Path("data/verdict-study")
PAGE = Path("docs/verdict-study.md")
FASHION_TRAIN, FASHION_TEST, FASHION_DIM = 15_000, 5_000, 64
RECIPES = {
    "digits": StudyRecipe(hidden=64, steps=250, batch_size=128, lr=1e-2),
    "fashion-mnist": StudyRecipe(hidden=64, steps=700, batch_size=250, lr=1e-2),
}


def load(name: str) -> StudyData:
    """Load the rows of one data set.

    Of the digits these are the pixels. Of Fashion-MNIST they are 15,000 training and 5,000 test rows in the 64 whitened
    principal components of the other 45,000 training rows. That transformation is public: no request touches its rows.
    """
    source = read_digits() if name == "digits" else read_fashion_mnist()
    batches = [(np.asarray(b.content), np.asarray(b.labels), np.asarray(b.splits) == "train") for b in source.batches]
    images, labels, is_train = (np.concatenate(columns) for columns in zip(*batches, strict=True))
    x: NDArray[np.float32] = images.reshape(len(images), -1).astype(np.float32) / np.float32(255)
    y = labels.astype(np.int64)
    chosen = [np.flatnonzero(is_train), np.flatnonzero(~is_train)]
    if name != "digits":
        rng = np.random.default_rng(0)
        public = chosen[0]
        sizes = (FASHION_TRAIN, FASHION_TEST)
        chosen = [np.sort(rng.choice(c, n, replace=False)) for c, n in zip(chosen, sizes, strict=True)]
        x = whiten(x, np.setdiff1d(public, chosen[0]), FASHION_DIM)
    order = np.concatenate(chosen)
    return StudyData(name, torch.from_numpy(np.ascontiguousarray(x[order])), y[order], len(chosen[0]), RECIPES[name])


def whiten(x: NDArray[np.float32], public: NDArray[np.int64], dim: int) -> NDArray[np.float32]:
    """`x (n, d)` projected on the first `dim` principal components of the rows `public`, with variance 1 there."""
    centre = x[public].mean(axis=0)
    values, vectors = np.linalg.eigh(np.cov(x[public].T))
    return np.asarray((x - centre) @ (vectors[:, -dim:] / np.sqrt(values[-dim:])), dtype=np.float32)


def run_trials(data: StudyData, trials: Iterable[int], home: Path, judge_again: bool = False) -> None:
    """Train and judge the missing trials. `judge_again`: judge stored trials again."""
    for trial in trials:
        weights, judged = (home / data.name / f"{kind}-{trial:04d}" for kind in ("weights", "judged"))
        weights, judged = weights.with_suffix(".safetensors"), judged.with_suffix(".json")
        if not weights.is_file():
            train_trial(data, trial, weights)
            log_message(f"verdict study: {data.name} trial {trial} trained")
        if judge_again or not judged.is_file():
            write_json(judged, {"records": list(judge_trial(data, trial, load_networks(weights)))})


def records(home: Path, name: str) -> list[dict[str, Any]]:
    """All records judged so far. Raises DataError if there are none."""
    files = sorted((home / name).glob("judged-*.json"))
    if not files:
        raise DataError(
            f"{home / name}: no trial was judged; run python -m expunge.results.verdict_study --data {name}"
        )
    return [record for file in files for record in json.loads(file.read_text())["records"]]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and judge the trials that the arguments name; with `--page`, write the tables."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--data", choices=sorted(RECIPES), nargs="+", default=sorted(RECIPES))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--judge", action="store_true", help="judge the trained trials again")
    parser.add_argument("--home", type=Path, default=HOME)
    parser.add_argument("--page", type=Path, default=None, help=f"file to write the tables to, such as {PAGE}")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    # Adam's averages of tiny squared gradients become denormal numbers, which slow the training many times.
    torch.set_flush_denormal(True)
    with threadpool_limits(1):
        for name in given.data:
            run_trials(load(name), range(given.first, given.first + given.trials), given.home, given.judge)
    found = {name: summarise(records(given.home, name)) for name in given.data}
    text = page(found)
    if given.page is not None:
        write_text(given.page, text)
    print(text)


if __name__ == "__main__":
    main()
