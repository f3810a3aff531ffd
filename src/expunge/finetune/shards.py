"""`model.shards` and `model.slices`: the layers above a cut, trained on disjoint shards of rows in incremental steps.

SISA (Bourtoule et al., arXiv 1912.03817): rows are divided into shards, and those of a shard into slices. Step r of a
shard trains on its slices 0 .. r from the state after step r - 1, and the state after every step is stored. A request
trains only the shards again that contain its rows, each from the earliest slice that contains one.

A step is determined by public weights, recipe, seed and its rows. The stored state of a step is therefore reused where
its rows are the same, by the Merkle root of their keyed digests, and its weights have the recorded digest. The result
equals that of training all steps bit for bit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from expunge.finetune.cut import Activations
from expunge.finetune.relearn import Relearn
from expunge.finetune.shard_assignment import ShardAssignment
from expunge.models.checkpoint import digest_of_tensors
from expunge.models.classifier import Classifier
from expunge.models.cut_split import Traces
from expunge.models.cuts import split_at_cut, traces_of
from expunge.models.lower import lower_digest
from expunge.models.sharded import LEAST_ROWS, average, core_with_shards, sharded, unsharded, upper_state, with_upper
from expunge.models.zoo import public_start
from expunge.system.errors import DataError
from expunge.system.progress import log_message

State = dict[str, Tensor]
# A job is a shard with the reused states of its first steps. Its result is the state after every step and the history
# of the passes made.
Job = tuple["TrainingShard", list[State]]
TrainedSteps = tuple[list[State], list[dict[str, float]]]
Engine = Callable[[Sequence[Job], Activations, NDArray[np.integer]], list[TrainedSteps]]
STEPS = "steps"  # the folder of the states after all steps but the last


@dataclass(frozen=True)
class EarlierTraining:
    """An earlier training: `parts`, the records of the steps by shard, and `state(shard, step)`, None where missing."""

    parts: list[list[dict[str, Any]]]
    state: Callable[[int, int], State | None]


@dataclass
class Trained:
    """The result of training the shards.

    `classifier_` contains all shards. `states` are the states after all steps but the last, by (shard, step). `again`
    maps each shard that was trained to its first trained step.
    """

    classifier_: Classifier
    states: dict[tuple[int, int], State]
    again: dict[int, int] = field(default_factory=dict)
    history_: list[dict[str, float]] = field(default_factory=list)

    def save_steps(self, directory: Path) -> None:
        """Write the states after all steps but the last below `directory`, one file each."""
        for (shard, step), state in self.states.items():
            file = step_file(directory, shard, step)
            file.parent.mkdir(exist_ok=True)
            save_file(state, file)


def in_turn(jobs: Sequence[Job], activations: Activations, labels: NDArray[np.integer]) -> list[TrainedSteps]:
    """Train one shard after the other in this process; this is the default engine."""
    return [shard.trained(activations, labels, taken) for shard, taken in jobs]


def step_file(directory: Path, shard: int, step: int) -> Path:
    """Return the file of the state that a shard had after a step, below a model directory."""
    return directory / STEPS / f"shard-{shard:04d}-step-{step:04d}.safetensors"


def earlier_training(classifier: Classifier, directory: Path | None) -> EarlierTraining:
    """Return the earlier training of a `classifier` with shards, with the states stored below its model `directory`."""
    core = core_with_shards(classifier)
    assert core is not None and classifier.card.above is not None
    parts = classifier.card.above["shards"]["parts"]

    def state(shard: int, step: int) -> State | None:
        if step == len(parts[shard]) - 1:
            return {name: tensor.detach() for name, tensor in core.uppers[shard].state_dict().items()}
        file = None if directory is None else step_file(directory, shard, step)
        return load_file(file) if file is not None and file.is_file() else None

    return EarlierTraining(parts, state)


def train_shards(
    classifier: Classifier,
    activations: Activations,
    labels: NDArray[np.integer],
    rows: NDArray[np.integer],
    recipe: Mapping[str, Any],
    places: ShardAssignment,
    earlier: EarlierTraining | None = None,
    engine: Engine | None = None,
) -> Trained:
    """Train every shard on its part of `rows` of `activations` and `labels` `(len(activations),)`, by `recipe`.

    `recipe` holds the arguments of `Relearn`; its `epochs` is the mean number of passes over a row, and all other seeds
    are derived from its `seed`. `engine` trains the shards; None trains them one after the other in this process. Only
    the description of `classifier`, which names the public weights, and its preprocessing are used. Raises DataError
    where no shard has enough rows, CheckpointError where the public weights differ from the recorded ones, and the
    errors of `Relearn.fit`.
    """
    base = public_start(replace(classifier.card, above=None), classifier.preprocess).eval()
    base.to(classifier.head.weight.device)
    trained, parts, ends = Trained(classifier, {}), [], []
    shards = shards_of(base, recipe, places, rows)
    counts = counts_of(shards, labels, classifier.card.num_classes)
    if not (counts.sum(axis=1) >= LEAST_ROWS).any():
        raise DataError(
            f"none of the {places.shards} shards has the {LEAST_ROWS} rows that training needs; lower model.shards"
        )
    jobs = [(shard, shard.taken_over(earlier)) for shard in shards]
    for number, (shard, (states, history)) in enumerate(
        zip(shards, (engine or in_turn)(jobs, activations, labels), strict=True)
    ):
        if len(jobs[number][1]) < places.slices:
            trained.again[number] = len(jobs[number][1])
            trained.history_ += history
        parts.append(shard.records(states))
        ends.append(states[-1])
        trained.states |= {(number, step): state for step, state in enumerate(states[:-1])}
    card = card_of(classifier, recipe, places, parts)
    trained.classifier_ = _joined(base, recipe["cut"], card, ends, counts, shards[0].traces)
    return trained


def shards_of(
    base: Classifier, recipe: Mapping[str, Any], places: ShardAssignment, rows: NDArray[np.integer]
) -> list[TrainingShard]:
    """Return the shards of `rows`, above the recipe's cut of the public network `base`, which is in eval mode."""
    traces, found = traces_of(base), []
    for number in range(places.shards):
        steps = [places.up_to(rows, number, step) for step in range(places.slices)]
        found.append(TrainingShard(base, traces, recipe, number, steps, [places.root(step) for step in steps]))
    return found


def counts_of(shards: list[TrainingShard], labels: NDArray[np.integer], classes: int) -> NDArray[np.int64]:
    """Return the number of rows of each class in each shard, `(S, classes)`."""
    return np.stack([np.bincount(labels[shard.steps[-1]], minlength=classes) for shard in shards])


def card_of(classifier: Classifier, recipe: Mapping[str, Any], places: ShardAssignment, parts: list[Any]) -> Any:
    """Return the model's description, with all that a later training without some rows needs."""
    base = unsharded(classifier)
    shards = {"count": places.shards, "slices": places.slices, "key": places.key, "parts": parts}
    lower = lower_digest(split_at_cut(base, recipe["cut"]))
    return replace(classifier.card, above={"recipe": dict(recipe), "lower_digest": lower, "shards": shards})


def _joined(
    base: Classifier, cut: str, card: Any, ends: list[State], counts: NDArray[np.int64], traces: Traces
) -> Classifier:
    joined = sharded(base, cut, len(ends), card, traces)
    core = core_with_shards(joined)
    assert core is not None
    for upper, state in zip(core.uppers, ends, strict=True):
        upper.load_state_dict(state)
    joined.set_head(*average(counts))
    return joined


class TrainingShard:
    """One shard: `steps`, the rows of each step, and `roots`, their Merkle roots."""

    def __init__(
        self,
        base: Classifier,
        traces: Traces,
        recipe: Mapping[str, Any],
        number: int,
        steps: list[NDArray[np.int64]],
        roots: list[str],
    ) -> None:
        self.base, self.cut, self.traces, self.recipe, self.number = base, recipe["cut"], traces, recipe, number
        self.steps, self.roots = steps, roots

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "traces": None}  # traces hold autograd state, which cannot be sent to another process

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, traces=traces_of(state["base"]))

    def trained(
        self, activations: Activations, labels: NDArray[np.integer], taken: Sequence[State] = ()
    ) -> TrainedSteps:
        """Train the steps after `taken`, the reused states of the first steps.

        Returns the state after every step, and the history of the passes made.
        """
        states, history = list(taken), []
        state = states[-1] if states else self._start()
        for step in range(len(states), len(self.steps)):
            known = len(self.steps[step - 1]) if step else 0
            if len(self.steps[step]) >= LEAST_ROWS and len(self.steps[step]) > known:
                state, passes = self._step(step, state, activations, labels)
                history += passes
            states.append(state)
        if len(taken) < len(self.steps):
            log_message(f"shard {self.number}, {len(self.steps[-1]):,} rows, is trained from slice {len(taken)} on")
        return states, history

    def records(self, states: list[State]) -> list[dict[str, Any]]:
        """Return the record of each step: the number of rows, their Merkle root, and the digest of its weights."""
        return [
            {"rows": len(rows), "merkle_root": root, "weights_digest": digest_of_tensors(state)}
            for rows, root, state in zip(self.steps, self.roots, states, strict=True)
        ]

    def taken_over(self, earlier: EarlierTraining | None) -> list[State]:
        """Return the states of the first steps whose rows are the same as before and whose weights match the record."""
        if earlier is None:
            return []
        recorded, found = earlier.parts[self.number], []
        for step, root in enumerate(self.roots):
            state = earlier.state(self.number, step) if recorded[step]["merkle_root"] == root else None
            if state is None or digest_of_tensors(state) != recorded[step]["weights_digest"]:
                break
            found.append(state)
        return found

    def _start(self) -> State:
        """Return the initial state: public weights, and a head drawn from the seed."""
        fresh = copy.deepcopy(self.base)
        with torch.random.fork_rng():
            torch.manual_seed(self._seed(0))
            fresh.head.reset_parameters()
        return upper_state(fresh, self.cut, self.traces)

    def _step(
        self, step: int, state: State, activations: Activations, labels: NDArray[np.integer]
    ) -> tuple[State, list[dict[str, float]]]:
        # Bourtoule et al., section V: with 2 e / (R + 1) passes per step, R steps use as many rows as e full passes.
        passes = self.recipe["epochs"] * 2 / (len(self.steps) + 1)
        recipe = {**self.recipe, "seed": self._seed(step), "epochs": passes}
        begin = with_upper(self.base, self.cut, self.traces, state)
        fitted = Relearn(**recipe).fit(self.base, activations, labels, self.steps[step], begin=begin)
        history = [{"shard": self.number, "slice": step, **p} for p in fitted.history_]
        return upper_state(fitted.classifier_, self.cut, self.traces), history

    def _seed(self, step: int) -> int:
        """Return the seed of a step, which differs between steps and shards."""
        drawn = np.random.SeedSequence([self.recipe["seed"], self.number, step]).generate_state(1)
        return int(drawn[0])
