"""A training in several processes: what they are given as files, and what each of them does with it."""

from __future__ import annotations

import os
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
from expunge.training.full import build_classifier, fit_all
from expunge.training.process_group import ProcessGroup

JOB, ROWS, LABELS, TRAINED, RESULT = "job.json", "rows.npy", "labels.npy", "trained.safetensors", "result.json"
RESTARTS = 3  # of all processes, after one of them died


def run_job(work: Path) -> None:
    """Run the training job in `work` together with the other processes of torch's process group.

    Where there are GPUs, the current one is used. Rank 0 writes weights and history.
    """
    job = read_json(work / JOB)
    config = TypeAdapter(Config).validate_python(job["config"])
    group = ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    refused, history = None, []
    try:
        dataset = Dataset(job["dataset"], verify=False).with_labels(np.load(work / LABELS))
        classifier = build_classifier(config, dataset, job["seed"])
        if torch.cuda.is_available():
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
