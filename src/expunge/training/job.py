"""A training or a relearning in several processes: what they are given as files, and what each of them does with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from safetensors.torch import save_file
from torch import distributed

from expunge.config import Config
from expunge.data.dataset import Dataset
from expunge.finetune.process_group import ProcessGroup
from expunge.finetune.relearn import Relearn
from expunge.models.checkpoint import load_classifier
from expunge.models.classifier import Classifier
from expunge.system.errors import ExpungeError
from expunge.system.files import read_json, write_json
from expunge.training.full import build_classifier, fit_all

JOB, ROWS, LABELS, LOGITS, MODEL = "job.json", "rows.npy", "labels.npy", "logits.npy", "model"
TRAINED, RESULT = "trained.safetensors", "result.json"
RESTARTS = 3  # of all processes, after one of them died


def run_job(work: Path) -> None:
    """Run the job in `work` together with the other processes of torch's process group.

    Where there are GPUs, the current one is used. Rank 0 writes weights and history, or the error that ended the job.
    """
    job = read_json(work / JOB)
    group = ProcessGroup(distributed.get_rank(), distributed.get_world_size())
    refused: dict[str, str] | None = None
    history: list[dict[str, float]] = []
    try:
        classifier, history = (_train if "config" in job else _relearn)(work, job, group)
        if group.rank == 0:
            tensors = {k: v.detach().cpu().contiguous().clone() for k, v in classifier.state_dict().items()}
            save_file(tensors, work / (TRAINED + ".tmp"))
            os.replace(work / (TRAINED + ".tmp"), work / TRAINED)
    except ExpungeError as e:  # the same in all processes and after a restart, so it is not retried
        refused = {"error": type(e).__name__, "message": str(e)}
    if group.rank == 0:
        write_json(work / RESULT, {"history": history, "refused": refused})
    distributed.barrier()


def _train(work: Path, job: dict[str, Any], group: ProcessGroup) -> tuple[Classifier, list[dict[str, float]]]:
    config = TypeAdapter(Config).validate_python(job["config"])
    dataset = Dataset(job["dataset"], verify=False).with_labels(np.load(work / LABELS))
    classifier = _placed(build_classifier(config, dataset, job["seed"]))
    return classifier, fit_all(config, classifier, dataset, np.load(work / ROWS), job["seed"], work, group)


def _relearn(work: Path, job: dict[str, Any], group: ProcessGroup) -> tuple[Classifier, list[dict[str, float]]]:
    classifier = _placed(load_classifier(work / MODEL))
    activations = np.load(job["activations"], mmap_mode="r")
    logits = torch.from_numpy(np.load(work / LOGITS)) if job["has_logits"] else None
    relearn = Relearn(**job["relearn"])
    relearn.fit(classifier, activations, np.load(work / LABELS), np.load(work / ROWS), logits, group=group)
    return relearn.classifier_, relearn.history_


def _placed(classifier: Classifier) -> Classifier:
    if torch.cuda.is_available():
        classifier.to(torch.device("cuda", torch.cuda.current_device()))
    return classifier
