"""python -m expunge.results.verdict_study: calibrate the verdict, over many models that forgot nothing and some that
never knew.

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
from threadpoolctl import threadpool_limits

from expunge.data.readers.digits import read_digits
from expunge.data.readers.fashion_mnist import read_fashion_mnist
from expunge.results.study_models import Recipe
from expunge.results.study_page import page, summarise
from expunge.results.study_trials import Data, judge_trial, load_networks, train_trial
from expunge.system.errors import DataError
from expunge.system.files import write_json, write_text
from expunge.system.progress import log_message

MODULE = "expunge.results.verdict_study"
HOME = Path("data/verdict-study")
PAGE = Path("docs/verdict-study.md")
FASHION_TRAIN, FASHION_TEST = 15_000, 5_000
RECIPES = {
    "digits": Recipe(hidden=64, steps=600, batch_size=64, lr=5e-3),
    "fashion-mnist": Recipe(hidden=64, steps=400, batch_size=500, lr=5e-3),
}


def load(name: str) -> Data:
    """The rows of one data set. Fashion-MNIST: 15,000 training and 5,000 test rows, means of 2 x 2 pixels."""
    source = read_digits() if name == "digits" else read_fashion_mnist()
    images, labels, train = [], [], []
    for batch in source.batches:
        images.append(np.asarray(batch.content))
        labels.append(np.asarray(batch.labels))
        train.append(np.asarray(batch.splits) == "train")
    x = np.concatenate(images).astype(np.float32).squeeze(-1) / 255
    y, is_train = np.concatenate(labels).astype(np.int64), np.concatenate(train)
    chosen = [np.flatnonzero(is_train), np.flatnonzero(~is_train)]
    if name != "digits":
        rng = np.random.default_rng(0)
        sizes = (FASHION_TRAIN, FASHION_TEST)
        chosen = [np.sort(rng.choice(c, n, replace=False)) for c, n in zip(chosen, sizes, strict=True)]
        x = x.reshape(len(x), 14, 2, 14, 2).mean(axis=(2, 4))
    order = np.concatenate(chosen)
    flat = x[order].reshape(len(order), -1)
    return Data(name, torch.from_numpy(np.ascontiguousarray(flat)), y[order], len(chosen[0]), RECIPES[name])


def run_trials(data: Data, trials: Iterable[int], home: Path, judge_again: bool = False) -> None:
    """Train and judge the trials that are not there yet."""
    for trial in trials:
        weights, judged = (home / data.name / f"{kind}-{trial:04d}" for kind in ("weights", "judged"))
        weights, judged = weights.with_suffix(".safetensors"), judged.with_suffix(".json")
        if not weights.is_file():
            train_trial(data, trial, weights)
            log_message(f"verdict study: {data.name} trial {trial} trained")
        if judge_again or not judged.is_file():
            write_json(judged, {"records": list(judge_trial(data, trial, load_networks(weights)))})


def records(home: Path, name: str) -> list[dict[str, Any]]:
    """Everything judged so far. Raises DataError where nothing is."""
    files = sorted((home / name).glob("judged-*.json"))
    if not files:
        raise DataError(
            f"{home / name}: no trial was judged; run python -m expunge.results.verdict_study --data {name}"
        )
    return [record for file in files for record in json.loads(file.read_text())["records"]]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--data", choices=sorted(RECIPES), nargs="+", default=sorted(RECIPES))
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first trial")
    parser.add_argument("--judge", action="store_true", help="judge again what is trained")
    parser.add_argument("--home", type=Path, default=HOME)
    parser.add_argument("--page", type=Path, default=None, help=f"write the tables there, as {PAGE}")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
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
