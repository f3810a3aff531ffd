"""A process of `train.engine: torchrun`, which torchrun starts as `python -m expunge.training.worker FOLDER`."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import distributed

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.system.errors import ExpungeError
from expunge.system.files import read_json, write_json
from expunge.training.launch import JOB, LABELS, RESULT, ROWS, TRAINED
from expunge.training.process_group import ProcessGroup
from expunge.training.recipe import build_classifier, fit_all

PATIENCE = timedelta(minutes=30)  # waiting time for the slowest process; torchrun itself detects dead ones


def main(work: Path) -> None:
    """Run the training job in `work` together with the other processes. Rank 0 writes weights and history."""
    job = read_json(work / JOB)
    config = TypeAdapter(Config).validate_python(job["config"])
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if gpu else "gloo", timeout=PATIENCE)
    group = ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    refused, history = None, []
    try:
        dataset = Dataset(job["dataset"], verify=False).with_labels(np.load(work / LABELS))
        classifier = build_classifier(config, dataset, job["seed"])
        if gpu:
            classifier.to(torch.device("cuda", torch.cuda.current_device()))
        history = fit_all(config, classifier, dataset, np.load(work / ROWS), job["seed"], work, group)
        if group.rank == 0:
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in classifier.state_dict().items()}
            save_file(tensors, work / (TRAINED + ".tmp"))
            os.replace(work / (TRAINED + ".tmp"), work / TRAINED)
    except ExpungeError as e:  # the same in all processes and after a restart, so it is not retried
        refused = str(e)
    if group.rank == 0:
        write_json(work / RESULT, {"history": history, "refused": refused})
    distributed.barrier()
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
