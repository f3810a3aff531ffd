"""What is known about the data, from the source before it is prepared, or from the prepared dataset."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from expunge.checks.problem import Problem
from expunge.config import Config
from expunge.data.corrections import SELECTOR as CORRECT
from expunge.data.corrections import corrections_of
from expunge.data.dataset import Dataset
from expunge.data.schema import TEXT, TRAIN
from expunge.data.selectors import refuse_most, select, share_of
from expunge.data.split import whole_classes
from expunge.system.errors import ExpungeError

Shape = tuple[int, int, int]
# Sources with fixed content: number of classes, image shape (None: texts), training rows, test rows.
KNOWN: dict[str, tuple[int, Shape | None, int, int]] = {
    "fashion-mnist": (10, (28, 28, 1), 60_000, 10_000),
    "digits": (10, (8, 8, 1), 1_438, 359),
}
PLACEHOLDER = (2, (224, 224, 3))  # number of classes and image shape for building a model if they are unknown


@dataclass(frozen=True)
class Schema:
    """Facts about the data.

    `texts`: whether rows are texts. `shape`: height, width and channels that all images share; None if they differ or
    are not known. `mixed`: whether sizes differ, None if unknown. `classes`, `train`, `rows`: numbers of classes,
    training rows and all rows, 0 if unknown. `dataset`: the prepared dataset of this source, if there is one.
    """

    texts: bool
    shape: Shape | None
    mixed: bool | None
    classes: int
    train: int
    rows: int
    dataset: Dataset | None = None

    @classmethod
    def of(cls, config: Config, directory: Path) -> tuple[Schema, list[Problem]]:
        """Return the schema of the dataset in `directory`, else that of the configured source; and the conflicts found.

        The dataset counts only if it comes from the source that `config` names.
        """
        source = config.data.source
        found: list[Problem] = []
        if directory.is_dir():
            try:
                dataset = Dataset(directory, verify=False)
                if _same_source(dataset, config):
                    return cls._of_dataset(dataset), []
            except (ExpungeError, OSError, KeyError) as e:
                found.append(Problem.from_error(str(directory), e))
        path = config.data.path
        if path is not None and source not in ("fashion-mnist", "fortunes", "emoji") and not Path(path).exists():
            found.append(
                Problem("data.path", f"{path}: no such file or directory", "put the data there, or correct the path")
            )
        if source in KNOWN:
            classes, shape, train, test = KNOWN[source]
            return cls(False, shape, False, classes, train, train + test), found
        texts = source in ("text", "fortunes") or config.model.name.startswith("sentence:")
        return cls(texts, None, None, 0, 0, 0), found

    @classmethod
    def _of_dataset(cls, dataset: Dataset) -> Schema:
        texts, manifest = dataset.encoding == TEXT, dataset.manifest
        mixed = not texts and dataset.image_shape is None
        rows = sum(manifest.get(f"rows_{split}", 0) for split in ("train", "test", "unseen"))
        names = len(dataset.class_names)
        return cls(texts, dataset.image_shape, mixed, names, manifest["rows_train"], rows, dataset)

    @cached_property
    def example_shape(self) -> Shape | None:
        """Height, width and channels that a backbone is built for; None for texts."""
        if self.texts:
            return None
        if self.shape is not None or self.dataset is None:
            return self.shape or PLACEHOLDER[1]
        height, width, channels = self.dataset.images(np.array([0]))[0].shape
        return height, width, channels


def _same_source(dataset: Dataset, config: Config) -> bool:
    """Return whether the dataset was made from the configured source.

    Its manifest names the source as params do, or by the path that was read.
    """
    name, data = str(dataset.manifest.get("source", "")), config.data
    return name.startswith(data.source) or (data.path is not None and Path(data.path).name in name)


@dataclass(frozen=True)
class RequestSize:
    """Kind and size of a request.

    `kind`: "classes" if whole classes are forgotten, "rows" if rows of classes that stay, "corrections" if labels are
    replaced, None if unknown. `forget_rows`: number of rows to forget or, for corrections, to correct.
    """

    kind: str | None
    forget_rows: int = 0


def request_of(config: Config, schema: Schema) -> tuple[RequestSize, list[Problem]]:
    """Return the request of `config` and its conflicts.

    If a dataset is prepared, they are found by selecting the rows of the request, else by its selector.
    """
    asked = config.split
    if asked.selector == "canaries":
        return RequestSize("rows", config.data.canaries), []
    if asked.selector == "memorised":
        return RequestSize("rows", share_of(asked.fraction, schema.train)), []
    if schema.dataset is not None:
        train = schema.dataset.splits() == TRAIN
        try:
            if asked.selector == CORRECT:
                return RequestSize("corrections", len(corrections_of(schema.dataset, train, asked.file).rows)), []
            forget = select(
                schema.dataset, train, asked.selector, classes=asked.classes, fraction=asked.fraction,
                file=asked.file, filter=asked.filter, seed=asked.seed,
            )  # fmt: skip
            if (train & ~forget).any():
                refuse_most(asked.selector, forget, train, asked.more_than_half)
        except ExpungeError as e:
            return RequestSize(None), [Problem.from_error("split", e)]
        left = int((train & ~forget).sum())
        if not forget.any() or not left:
            what = "every training row, so nothing would be left to keep" if not left else "no training row"
            return RequestSize(None), [
                Problem("split", f"the request forgets {what}", "change the request under split")
            ]
        kind = "classes" if len(whole_classes(schema.dataset.labels(), train, forget)) else "rows"
        return RequestSize(kind, int(forget.sum())), []
    found = []
    if asked.selector in ("ids", "subjects", CORRECT) and asked.file and not Path(asked.file).is_file():
        found.append(Problem("split.file", f"{asked.file}: no such file", "write the list, then run `dvc add` on it"))
    indices = [c for c in asked.classes if isinstance(c, int)]
    if asked.selector == "classes" and schema.classes and not all(0 <= c < schema.classes for c in indices):
        says = f"{asked.classes}: the classes are 0 to {schema.classes - 1}"
        found.append(Problem("split.classes", says, "choose among these"))
    if asked.selector == "classes" and not asked.classes:
        found.append(Problem("split.classes", "is empty", "name at least one class"))
    return RequestSize(
        {"classes": "classes", "filter": None, CORRECT: "corrections"}.get(asked.selector, "rows")
    ), found
