"""Linear probes at up to four inner stages of a backbone: what their features still reveal about forgotten rows."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from expunge.data.dataset import Dataset
from expunge.evaluation.gates import MAX_STAGES, stage_path
from expunge.evaluation.representation import linear_probe_rows
from expunge.evaluation.rows import Rows
from expunge.models.classifier import Classifier
from expunge.models.cut_split import core_of
from expunge.models.cuts import example, traces_of
from expunge.models.layers import PENULTIMATE, Layers
from expunge.system.errors import ConfigError
from expunge.system.files import digest_of, write_shared

TRAIN, TEST = 1500, 750  # rows on each side that a probe learns from and is scored on; this limits the forward passes
BATCH = 256


def stage_names(classifier: Classifier) -> tuple[str, ...]:
    """Names of up to MAX_STAGES modules of the backbone, spread over its depth, the one nearest the input first.

    All information passes through each of these modules. The last one, which gives the features that the head reads, is
    left out. Empty if the backbone has no such module or cannot be traced.
    """
    core, prefix = core_of(copy.deepcopy(classifier))  # hooks stay on the copy
    try:
        traces = traces_of(classifier)
    except (ConfigError, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
        return ()
    sample, calls = example(classifier, 2, 5), traces.first.calls
    ends = {names[0]: calls[names[0]][0].ended for names in traces.first.needed if names[0] in calls}
    whole = max((call.ended for runs in calls.values() for call in runs), default=1)

    @cache
    def usable(name: str) -> bool:
        return _pools(core, name, sample) and not _is_last(core, name, sample)

    chosen = set()
    for i in range(1, MAX_STAGES + 1):
        nearest = sorted(ends, key=lambda name, at=whole * i / (MAX_STAGES + 1): abs(ends[name] - at))  # type: ignore[misc]
        chosen |= {found for found in [next(filter(usable, nearest), None)] if found is not None}
    return tuple(name.removeprefix(prefix) for name in sorted(chosen, key=ends.__getitem__))


def stage_features(
    classifier: Classifier, names: tuple[str, ...], dataset: Dataset, rows: NDArray[np.int64]
) -> dict[str, NDArray[np.float32]]:
    """Pooled features `(len(rows), d)` float32 of each module in `names`, computed in eval mode.

    Image features are averaged over space, token features over positions. Raises ConfigError for a module that the
    backbone does not have.
    """
    core, prefix = core_of(copy.deepcopy(classifier.eval()))  # hooks stay on the copy
    modules = dict(core.named_modules())
    full = [prefix + name if prefix + name in modules else name for name in names]
    sample = example(classifier, 2, 5)
    with torch.no_grad():
        widths = [Layers(core, [name], sample)(sample).shape[1] for name in full]
    every = Layers(core, full, sample)
    parts = []
    with torch.no_grad():
        for start in range(0, len(rows), BATCH):
            x = classifier.preprocess(dataset.inputs(rows[start : start + BATCH]))
            parts.append(every(x.to(classifier.head.weight.device)).float().cpu().numpy())
    split = np.split(np.concatenate(parts), np.cumsum(widths)[:-1], axis=1)
    return dict(zip(names, split, strict=True))


def stage_probes(
    classifier: Classifier, names: tuple[str, ...], dataset: Dataset, rows: Rows, at: NDArray[np.int64]
) -> dict[str, NDArray[np.float64]]:
    """Per-row success of the probe at every stage, by the gate's path, over the same rows for every model.

    `at` maps the planned rows to rows of the dataset. Empty if the plan has no rows for a probe.
    """
    if rows.probe_train is None or rows.probe_test is None or not names:
        return {}
    train = [rows.thin(side, TRAIN, 20 + i) for i, side in enumerate(rows.probe_train)]
    test = [rows.thin(side, TEST, 22 + i) for i, side in enumerate(rows.probe_test)]
    chosen = at[np.concatenate([*train, *test])]
    learned = sum(len(side) for side in train)
    positive, truth = (np.repeat([True, False], [len(side) for side in sides]) for sides in (train, test))
    features = stage_features(classifier, names, dataset, chosen)
    return {
        stage_path(i): linear_probe_rows(z[:learned], positive, z[learned:], truth)
        for i, z in enumerate(features.values(), start=1)
    }


def cached_probes(
    directory: Path,
    digest: str,
    classifier: Classifier,
    names: tuple[str, ...],
    dataset: Dataset,
    rows: Rows,
    at: NDArray[np.int64],
) -> Mapping[str, NDArray[np.float64]]:
    """`stage_probes` of the model with this `digest`, read from `directory` or computed and stored there.

    Every method is compared with the same models, so their probes are computed only once.
    """
    sides = [side.tolist() for pair in (rows.probe_train, rows.probe_test) if pair is not None for side in pair]
    key = digest_of([digest, names, dataset.digest, sides, at.tolist(), rows.seed, TRAIN, TEST, code_version()])
    path = directory / f"{key.removeprefix('sha256:')}.safetensors"
    if path.is_file():
        return load_file(path)
    found = stage_probes(classifier, names, dataset, rows, at)
    if found:
        write_shared(path, save(found))  # evaluations of several methods may run side by side
    return found


def code_version() -> str:
    """Digest of the sources of this module and of the probe; a change of either invalidates stored results."""
    return digest_of([Path(f).read_text(encoding="utf-8") for f in (__file__, linear_probe_rows.__code__.co_filename)])


def _pools(core: torch.nn.Module, name: str, sample: Tensor) -> bool:
    """Whether the module's output can be pooled to one vector per input."""
    try:
        Layers(core, [name], sample)
    except ConfigError:
        return False
    return True


@torch.no_grad()
def _is_last(core: torch.nn.Module, name: str, sample: Tensor) -> bool:
    """Whether the module's pooled output equals the features that the head reads; these have gates of their own."""
    both = Layers(core, [name, PENULTIMATE], sample)(sample)
    return both.shape[1] % 2 == 0 and torch.allclose(*both.chunk(2, dim=1))
