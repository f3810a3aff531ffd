"""A process of `train.engine: torchrun`, which torchrun starts as `python -m expunge.training.worker FOLDER`."""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stderr
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from expunge.training.job import run_job

PATIENCE = timedelta(minutes=30)  # waiting time for the slowest process; torchrun itself detects dead ones


def main(work: Path) -> None:
    """Join torch's process group and run the training job in `work`."""
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    # All processes would show the same progress. A traceback is printed after the redirection, so it is seen.
    with open(os.devnull, "w") as nowhere, redirect_stderr(nowhere if distributed.get_rank() else sys.stderr):
        run_job(work)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
