"""How many steps relearning above a cut needs: on three models, by held-out training rows alone.

Relearns above a cut, for a class and for a random tenth of the rows, with a fifth of a pass and one pass of batches of
128, and with 1 and 2 passes, those of the recipe and twice as many of the recipe's batches. Reads rows that no model
was trained on. No retrained model is made and no test row is read; see `method_rates`, which makes the originals. One
thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.method_rates import STUDIES, Study, cut_of
from expunge.finetune.cut import fetch_activations
from expunge.finetune.relearn import Relearn


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.relearn_budget", description=__doc__)
    parser.add_argument("study", choices=STUDIES, help="the data, and the model that is trained on it")
    name = parser.parse_args().study
    with tempfile.TemporaryDirectory() as tmp:
        study = Study(name, Path(tmp))
        cut = cut_of(study.config.model.name)
        path = Path(tmp) / "activations.npy"
        fetch_activations(study.original, study.dataset.inputs(study.rows), cut, path)
        activations = np.load(path, mmap_mode="r")
        passes, own = study.config.train.epochs, study.config.train.batch_size
        budgets = [(0.2, 128), (1.0, 128), *((float(count), own) for count in (1, 2, passes, 2 * passes))]
        print(f"{name}: {len(study.rows)} rows trained on in {passes} passes, {study.seconds:.0f} s; cut {cut}")
        print("\n| request | passes | batch | steps | kept, original % | kept % | gone % | s |")
        print("|---|---|---|---|---|---|---|---|")
        for kind, forget in study.requests().items():
            retain = np.setdiff1d(study.rows, forget)
            where = np.searchsorted(study.rows, retain)
            before, _ = study.measured(study.original, kind, forget)
            for epochs, batch in budgets:
                method = Relearn(cut=cut, epochs=epochs, batch_size=batch, precision="fp32")
                began = time.perf_counter()
                method.fit(study.original, activations, study.labels[study.rows], where)
                seconds = time.perf_counter() - began
                size = min(batch, len(retain))
                steps = max(1, int(epochs * (len(retain) // size)))
                kept, left = study.measured(method.classifier_, kind, forget)
                cells = f"{steps} | {100 * before:.1f} | {100 * kept:.1f} | {100 * left:.1f} | {seconds:.0f}"
                print(f"| {kind} | {epochs:g} | {batch} | {cells} |", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
