"""Train all weights of a classifier by a recipe, resumable to the same bytes.

A head alone is not trained here: on a frozen backbone, its optimum is computed directly from features.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from expunge.finetune.process_group import RANK_SEEDS, ProcessGroup, synchronised_batch_norm
from expunge.finetune.rows import Examples
from expunge.finetune.steps import PRECISIONS
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.system.errors import DataError
from expunge.system.progress import log_message, progress
from expunge.system.vision_imports import import_vision
from expunge.training.batches import Batches
from expunge.training.descent import END, START, WARM_UP, make_optimizer, make_schedule, one_cycle
from expunge.training.state import STATE, TrainState, digest_of_data

__all__ = ["END", "START", "STATE", "computes_bf16", "one_cycle", "train"]
ROWS = 500  # batch size for held-out rows


def train(
    classifier: Classifier,
    inputs: Examples,
    labels: NDArray[np.int32],
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    momentum: float,
    weight_decay: float,
    precision: str,
    seed: int,
    optimizer: str = "sgd",
    schedule: str = "one-cycle",
    warmup: float = WARM_UP,
    layer_decay: float = 1.0,
    label_smoothing: float = 0.0,
    ema: float = 0.0,
    frozen_norm: bool = False,
    augment: str = "none",
    augment_workers: int = 0,
    accumulate: int = 1,
    compile: bool = False,
    patience: int | None = None,
    holdout: NDArray[np.bool_] | None = None,
    resume_dir: Path | None = None,
    group: ProcessGroup | None = None,
) -> list[dict[str, float]]:
    """Train `classifier` in place on `inputs` and their `labels` (n,), and leave it in eval mode.

    `inputs` are uint8 images (n, h, w) or (n, h, w, c), or int32 token ids (n, t) of texts, negative after their end.

    `optimizer`, `layer_decay`: see `make_optimizer`; `schedule`, `warmup`: see `make_schedule`; `augment`: see
    `make_augment`; `augment_workers`: see `Batches`, they do not change the weights. `precision`: "fp32", "bf16"
    (autocast), or "auto", which is bf16 if the device has instructions for it. `ema`: decay of timm's `ModelEmaV3` with
    its warm-up, whose weights are the result; 0 is off. `frozen_norm`: batch norm keeps its initial statistics.
    `accumulate`: each batch is computed in this many parts. The gradient is that of the whole batch, except that batch
    norm uses the statistics of the parts. `compile`: forward and backward passes run through `torch.compile`, whose
    results differ by rounding. `patience`: stop after this many epochs without a smaller loss on the rows `holdout
    (n,)`, and restore the best weights; these rows are not trained on. `group`: this process's place among processes
    that train together, each with a slice of every batch. Rank 0 writes the state.

    The weights depend only on the arguments, the data, the kind of processor and the number of threads. With
    `resume_dir`, the state after each epoch is kept there in one file, which is replaced atomically. A killed run
    resumes from it and ends with the same bytes as an uninterrupted one. The caller removes it once the result is safe.

    Returns for each epoch: epoch, loss, accuracy (both on the batches as they were trained on), lr and lr_mean (rates
    of its last step and of all its steps), seconds, images_per_s, whether bf16 was used under "bf16" (0 or 1), and with
    `holdout` also held_loss and held_accuracy. Raises DataError for labels out of range or a loss that is not finite.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
    if len(inputs) != len(labels) or not len(labels):
        raise DataError(
            f"training needs at least one row and one label per row, got {len(inputs)} inputs and {len(labels)} labels"
        )
    if labels.min() < 0 or labels.max() >= classifier.card.num_classes:
        raise DataError(
            f"labels must be in 0..{classifier.card.num_classes - 1}, the classes of the model, got "
            f"{labels.min()}..{labels.max()}"
        )
    if patience is not None and (holdout is None or not holdout.any() or holdout.all()):
        raise DataError(
            "train.patience needs both held-out rows and rows to train on; raise train.holdout, or set "
            "train.patience to null"
        )
    arguments = {
        "epochs": epochs, "batch_size": batch_size, "lr": lr, "momentum": momentum, "weight_decay": weight_decay,
        "precision": precision, "seed": seed, "optimizer": optimizer, "schedule": schedule, "warmup": warmup,
        "layer_decay": layer_decay, "label_smoothing": label_smoothing, "ema": ema, "frozen_norm": frozen_norm,
        "augment": augment, "accumulate": accumulate, "compile": compile, "patience": patience,
    }  # fmt: skip
    start = digest_of_tensors(classifier.state_dict())
    watched = None if patience is None else holdout
    run = _Run(classifier, inputs, labels, arguments, watched, group or ProcessGroup(), augment_workers)
    data = digest_of_data(inputs, labels)
    data += "" if holdout is None else digest_of_data(holdout.view(np.uint8), labels)
    state = TrainState(resume_dir, {**arguments, "data": data, "start": start})

    def keep(bf16: bool, history: list[dict[str, float]]) -> None:
        if run.group.rank == 0:
            state.write(run.tensors(), {"bf16": bf16, "history": history}, run.optimizer)

    checkpoint = state.read(run.tensors(), run.optimizer)
    if checkpoint is None:
        bf16 = computes_bf16(run.device) if precision == "auto" else precision == "bf16"
        history: list[dict[str, float]] = []
        keep(bf16, history)
    else:
        bf16, history = checkpoint["bf16"], checkpoint["history"]
        if history:  # without any, another process of this run wrote the first state a moment ago
            log_message(f"train: resuming after epoch {len(history)} of {epochs}")
    with synchronised_batch_norm(classifier, run.group), run.given:
        for epoch in range(len(history), epochs):
            if patience is not None and _tired(history, patience):
                log_message(
                    f"train: stopped after epoch {epoch}, because the held-out loss has not fallen for {patience} "
                    "epochs"
                )
                break
            history.append(run.epoch(epoch, bf16))
            run.watch(history, bf16)
            keep(bf16, history)
    run.finish()
    return history


def _tired(history: list[dict[str, float]], patience: int) -> bool:
    """Whether the held-out loss has not fallen below its earlier minimum in the last `patience` epochs."""
    losses = [h["held_loss"] for h in history]
    return len(losses) > patience and min(losses[:-patience]) <= min(losses[-patience:])


class _Run:
    """Model, optimizer and data of one training run."""

    def __init__(
        self,
        classifier: Classifier,
        inputs: Examples,
        labels: NDArray[np.int32],
        a: Mapping[str, Any],
        holdout: NDArray[np.bool_] | None,
        group: ProcessGroup,
        augment_workers: int,
    ) -> None:
        self.classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.device = classifier.head.weight.device
        self.inputs = torch.from_numpy(inputs if inputs.flags.writeable else inputs.copy())
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.a = a
        rows = torch.arange(len(labels))
        self.holdout = rows[:0] if holdout is None else rows[torch.from_numpy(holdout)]
        self.rows = rows if holdout is None else rows[torch.from_numpy(~holdout)]
        self.batches = math.ceil(len(self.rows) / a["batch_size"])
        rates = a["lr"], a["momentum"], a["weight_decay"], a["layer_decay"]
        self.optimizer = make_optimizer(classifier, a["optimizer"], *rates)
        self.set_rate = make_schedule(self.optimizer, a["schedule"], a["epochs"] * self.batches, a["lr"], a["warmup"])
        self.given = Batches(self.inputs, a["augment"], augment_workers, a["seed"], group.rank, group.world_size)
        self.norms = [m for m in classifier.modules() if isinstance(m, _BatchNorm)] if a["frozen_norm"] else []
        self.ema: Any = None
        if a["ema"] > 0:
            self.ema = import_vision("timm.utils").ModelEmaV3(classifier, decay=a["ema"], use_warmup=True)
        self.group = group
        network = group.shared(self.classifier)
        self.network: Callable[..., Tensor] = torch.compile(network) if a["compile"] else network
        self.best = copy.deepcopy(classifier.state_dict()) if holdout is not None else {}

    def tensors(self) -> dict[str, Tensor]:
        """Return all tensors that training changes, except the optimizer's, by name. They are not copies."""
        parts = {"model": self.classifier.state_dict(), "best": self.best}
        if self.ema is not None:
            parts["ema"] = self.ema.module.state_dict()
        return {f"{part}.{k}": v for part, own in parts.items() for k, v in own.items()}

    @property
    def result(self) -> Classifier:
        """The network that is evaluated and saved: the moving average, if there is one."""
        averaged: Classifier | None = None if self.ema is None else self.ema.module
        return self.classifier if averaged is None else averaged

    def finish(self) -> None:
        """Load the resulting weights into the classifier and leave it in eval mode."""
        if self.best or self.ema is not None:
            self.classifier.load_state_dict(self.best or self.result.state_dict())
        self.classifier.eval()

    def epoch(self, epoch: int, bf16: bool) -> dict[str, float]:
        self.classifier.train()
        for norm in self.norms:
            norm.eval()
        # Epochs are below 1,000,003, so each pair of seed and epoch gives another generator seed.
        generator = torch.Generator().manual_seed(self.a["seed"] * 1_000_003 + epoch)
        order = self.rows[torch.randperm(len(self.rows), generator=generator)]
        loss_sum = torch.zeros((), dtype=torch.float64)
        correct = torch.zeros((), dtype=torch.int64)
        rates = []
        began = time.perf_counter()
        batches = torch.split(order, self.a["batch_size"])
        given = self.given.epoch(epoch, [self.group.own(part) for rows in batches for part in self.parts(rows)])
        # Dropout draws from the global generator. It is seeded for every epoch and restored afterwards.
        with torch.random.fork_rng(), progress("train", len(order), "rows", epoch, self.a["epochs"]) as advance:
            torch.manual_seed(self.a["seed"] * 1_000_003 + epoch + RANK_SEEDS * self.group.rank)
            for i, rows in enumerate(batches):
                step = epoch * self.batches + i
                self.set_rate(step)
                rates.append(max(group["lr"] for group in self.optimizer.param_groups))
                loss, hits = self.step(rows, given, step, bf16)
                loss_sum += loss.cpu().double() * len(rows)
                correct += hits.cpu()
                advance(len(rows))
        sums = self.group.total(torch.stack([loss_sum, correct.double()]).to(self.device)).cpu()
        loss_sum, correct = sums[0], sums[1]
        seconds = time.perf_counter() - began
        loss_mean = loss_sum.item() / len(order)
        if not math.isfinite(loss_mean):
            raise DataError(f"train: the loss is {loss_mean} in epoch {epoch + 1}; lower train.lr (now {self.a['lr']})")
        accuracy = correct.item() / len(order)
        log_message(f"train epoch {epoch + 1}/{self.a['epochs']}: loss {loss_mean:.4f}, accuracy {accuracy:.4f}")
        return {
            "epoch": epoch + 1, "loss": loss_mean, "accuracy": accuracy,
            "lr": rates[-1], "lr_mean": math.fsum(rates) / len(rates),
            "seconds": seconds, "images_per_s": len(order) / seconds, "bf16": int(bf16),
        }  # fmt: skip

    def parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return the parts in which the batch `rows` is computed."""
        return torch.tensor_split(rows, min(self.a["accumulate"], len(rows)))

    def step(self, rows: Tensor, given: Iterator[Tensor], step: int, bf16: bool) -> tuple[Tensor, Tensor]:
        """Update the weights once on the batch `rows`; `given` yields the inputs of its parts.

        Returns its mean loss and its number of correct predictions, both before the update.
        """
        self.optimizer.zero_grad(set_to_none=True)
        total, hits = torch.zeros((), device=self.device), torch.zeros((), dtype=torch.int64, device=self.device)
        for part in self.parts(rows):
            loss, right = self.loss(next(given), self.group.own(part), len(part), bf16)
            if len(part) < len(rows):
                loss = loss * (len(part) / len(rows))
            # Gradients are averaged over processes, but each process has only its share of the sum: undo the division.
            (loss * self.group.world_size if self.group.world_size > 1 else loss).backward()  # type: ignore[no-untyped-call]
            total, hits = total + loss.detach(), hits + right
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.classifier, step + 1)
        return total, hits

    def loss(self, inputs: Tensor, rows: Tensor, of: int, bf16: bool) -> tuple[Tensor, Tensor]:
        """Return what `rows` add to the mean loss over `of` rows, and their number of correct predictions."""
        labels = self.labels[rows].to(self.device)
        with self.autocast(bf16):
            logits = self.network(inputs.to(self.device))
        smoothing = self.a["label_smoothing"]
        if len(rows) == of:
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing)
        else:
            loss = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="sum") / of
        return loss, (logits.detach().argmax(1) == labels).sum()

    @torch.no_grad()
    def watch(self, history: list[dict[str, float]], bf16: bool) -> None:
        """Write loss and accuracy on held-out rows into the last entry of `history`.

        It also keeps the best weights so far.
        """
        if not len(self.holdout):
            return
        network = self.result.eval()
        loss, hits = 0.0, 0
        for rows in torch.split(self.holdout, ROWS):
            labels = self.labels[rows].to(self.device)
            with self.autocast(bf16):
                logits = network(self.inputs[rows].to(self.device)).float()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
            hits += int((logits.argmax(1) == labels).sum())
        found = torch.tensor([loss, hits], dtype=torch.float64, device=self.device)
        loss, right = self.group.decided(found).tolist()
        history[-1] |= {"held_loss": loss / len(self.holdout), "held_accuracy": right / len(self.holdout)}
        if all(history[-1]["held_loss"] < h["held_loss"] for h in history[:-1]):
            self.best = copy.deepcopy(network.state_dict())

    def autocast(self, bf16: bool) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()


def computes_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bf16 matrices.

    The device is queried, not timed, so that the same machine always gives the same answer and the same weights.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    has = torch.cpu.get_capabilities()
    return bool(has.get("avx512_bf16") or has.get("amx_bf16"))
