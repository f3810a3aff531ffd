"""Training all weights of a classifier: SGD with one cycle, resumable to the same bytes.

A head alone is not trained here: on a frozen backbone its optimum is found directly, from features.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError
from expunge.system.files import digest_of
from expunge.system.progress import log_message, progress

WARM_UP = 0.25  # share of the steps in which the learning rate rises
START, END = 0.1, 1e-3  # learning rate at the first and last step, as shares of its peak
PRECISIONS = ("auto", "fp32", "bf16")
STATE = "epoch.safetensors"


def one_cycle(step: int, steps: int, lr: float) -> float:
    """Learning rate of `step` in [0, steps): a linear rise to `lr`, then a cosine to `END * lr`.

    After Smith and Topin (arXiv 1708.07120), with a cosine for the way down.
    """
    rise = max(1, round(WARM_UP * steps))
    if step < rise:
        return lr * (START + (1 - START) * step / rise)
    way = (step - rise) / max(1, steps - 1 - rise)
    return lr * (END + (1 - END) * 0.5 * (1 + math.cos(math.pi * way)))


def train(
    classifier: Classifier,
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    precision: str,
    seed: int,
    resume_dir: Path | None = None,
) -> list[dict[str, float]]:
    """Train `classifier` in place on uint8 `images` (n, h, w) or (n, h, w, c) and `labels` (n,); leave it in eval mode.

    `precision`: "fp32", "bf16" (autocast), or "auto", which is bf16 where the device multiplies matrices in it. The
    weights depend on the arguments, the data, the kind of processor and the number of threads only.
    With `resume_dir` the state after each epoch is kept there (one file, replaced atomically): a run that was killed
    goes on from it and ends with the bytes of one that was not. The caller removes it once the result is safe.
    Returns per epoch: epoch, loss, accuracy (both of the batches as they were trained on), lr, seconds, images_per_s,
    and the precision used under "bf16" (0 or 1). Raises DataError for labels out of range or a loss that is not finite.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: one of {', '.join(PRECISIONS)}")
    if len(images) != len(labels) or not len(labels):
        raise DataError(f"{len(images)} images and {len(labels)} labels; there must be one label per image, and some")
    if labels.min() < 0 or labels.max() >= classifier.card.num_classes:
        raise DataError(
            f"labels span {labels.min()}..{labels.max()}; the model has classes 0..{classifier.card.num_classes - 1}"
        )
    arguments = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum,
        "weight_decay": weight_decay, "precision": precision, "seed": seed,
    }  # fmt: skip
    run = _Run(classifier, images, labels, arguments)
    state = _State(
        resume_dir, {**arguments, "data": _digest(images, labels), "start": digest_of_tensors(classifier.state_dict())}
    )
    kept = state.read(run.tensors())
    if kept is None:
        bf16 = computes_bf16(run.device) if precision == "auto" else precision == "bf16"
        history: list[dict[str, float]] = []
        state.write(run.tensors(), {"bf16": bf16, "history": history})
    else:
        bf16, history = kept["bf16"], kept["history"]
        log_message(f"train: resuming after epoch {len(history)} of {epochs}")
    for epoch in range(len(history), epochs):
        history.append(run.epoch(epoch, bf16))
        state.write(run.tensors(), {"bf16": bf16, "history": history})
    classifier.eval()
    return history


class _Run:
    """Model, optimizer and data of one training."""

    def __init__(
        self, classifier: Classifier, images: NDArray[np.uint8], labels: NDArray[np.int32], a: Mapping[str, Any]
    ) -> None:
        self.classifier = classifier.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.device = classifier.head.weight.device
        self.images = torch.from_numpy(images if images.flags.writeable else images.copy())
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.a = a
        self.batches = math.ceil(len(labels) / a["batch_size"])
        self.parameters = dict(classifier.named_parameters())
        self.optimizer = torch.optim.SGD(
            self.parameters.values(),
            lr=a["lr"],
            momentum=a["momentum"],
            weight_decay=a["weight_decay"],
            nesterov=a["momentum"] > 0,
        )
        # Made here and not at the first step, so that there is always something to save and to load into.
        self.velocity = {k: torch.zeros_like(p) for k, p in self.parameters.items()} if a["momentum"] > 0 else {}
        for name, buffer in self.velocity.items():
            self.optimizer.state[self.parameters[name]]["momentum_buffer"] = buffer

    def tensors(self) -> dict[str, Tensor]:
        """All that changes while training, by name; not copies."""
        model = {f"model.{k}": v for k, v in self.classifier.state_dict().items()}
        return model | {f"velocity.{k}": v for k, v in self.velocity.items()}

    def epoch(self, epoch: int, bf16: bool) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.a["seed"] * 1_000_003 + epoch)
        order = torch.randperm(len(self.labels), generator=generator)
        loss_sum = torch.zeros((), dtype=torch.float64)
        correct = torch.zeros((), dtype=torch.int64)
        began = time.perf_counter()
        # Dropout and the like draw from the global generator: borrow it, set by epoch, and give it back.
        with torch.random.fork_rng(), progress("train", len(order), "images", epoch, self.a["epochs"]) as advance:
            torch.manual_seed(self.a["seed"] * 1_000_003 + epoch)
            for i, rows in enumerate(torch.split(order, self.a["batch_size"])):
                rate = one_cycle(epoch * self.batches + i, self.a["epochs"] * self.batches, self.a["lr"])
                loss, hits = self.step(rows, rate, bf16)
                loss_sum += loss.cpu().double() * len(rows)
                correct += hits.cpu()
                advance(len(rows))
        seconds = time.perf_counter() - began
        loss_mean = loss_sum.item() / len(order)
        if not math.isfinite(loss_mean):
            raise DataError(f"train: the loss is {loss_mean} in epoch {epoch + 1}; lower train.lr (now {self.a['lr']})")
        accuracy = correct.item() / len(order)
        log_message(f"train epoch {epoch + 1}/{self.a['epochs']}: loss {loss_mean:.4f}, accuracy {accuracy:.4f}")
        return {
            "epoch": epoch + 1, "loss": loss_mean, "accuracy": accuracy, "lr": rate,
            "seconds": seconds, "images_per_s": len(order) / seconds, "bf16": int(bf16),
        }  # fmt: skip

    def step(self, rows: Tensor, rate: float, bf16: bool) -> tuple[Tensor, Tensor]:
        """One update on the batch `rows`; its mean loss and its number of correct predictions before the update."""
        labels = self.labels[rows].to(self.device)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with self.autocast(bf16):
            logits = self.classifier(self.images[rows].to(self.device))
        loss = F.cross_entropy(logits.float(), labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def autocast(self, bf16: bool) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16 matrices. Asked, not timed: the same machine always
    gives the same answer, and so the same weights."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))


class _State:
    """The state after an epoch: tensors and, in the same file's header, JSON. One file, so one atomic replacement."""

    def __init__(self, directory: Path | None, identity: Mapping[str, Any]) -> None:
        self.path = directory / STATE if directory is not None else None
        self.identity = digest_of(dict(identity))

    def write(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = json.dumps({**state, "identity": self.identity})
        tmp = self.path.with_suffix(".tmp")
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, tmp, metadata={"state": header})
        os.replace(tmp, self.path)

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Copy the kept state into `tensors`; None if there is none, or it is of another recipe, data or start."""
        if self.path is None or not self.path.is_file():
            return None
        try:
            with safe_open(self.path, "pt") as f:
                state: dict[str, Any] = json.loads(f.metadata()["state"])
                if state.pop("identity") != self.identity:
                    log_message(f"train: {self.path} is of another recipe or data; starting anew")
                    return None
                with torch.no_grad():
                    for name, tensor in tensors.items():
                        tensor.copy_(f.get_tensor(name))
        except SafetensorError as e:
            log_message(f"train: {self.path} is damaged ({e}); starting anew")
            return None
        return state


def _digest(images: NDArray[np.uint8], labels: NDArray[np.int32]) -> str:
    h = hashlib.sha256(f"{images.shape} {images.dtype} {labels.dtype}".encode())
    h.update(np.ascontiguousarray(images).data)
    h.update(np.ascontiguousarray(labels).data)
    return h.hexdigest()
