"""Measurements of the original and of retrained models, stored in files, since every method is compared with them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from expunge import evaluation
from expunge.evaluation.measuring import Measured, Measuring, Outputs
from expunge.evaluation.rows import Rows
from expunge.system.files import write_shared


def measure_references(rows: Rows, references: Iterable[Outputs], directory: Path) -> Measuring:
    """Return a `Measuring` that holds the measurements of `references`.

    Measurements that the same code made on the same rows before are read from `directory`. The others are made now and
    written there. Files of other models are removed.
    """
    measuring, plan, wanted = Measuring(rows), _digest(rows, code_version()), set()
    for model in references:
        path = directory / f"{_digest(plan, model)}.safetensors"
        wanted.add(path)
        if path.is_file():
            measuring.knows(model, _read(path))
        else:
            _write(path, measuring.of(model))
    for path in set(directory.glob("*.safetensors")) - wanted:
        path.unlink(missing_ok=True)
    return measuring


def _write(path: Path, measured: Measured) -> None:
    groups = {"rows": measured.rows, "knn": measured.knn, "relearned": {"": measured.relearned}}
    values = {f"{group}/{name}": v for group, found in groups.items() for name, v in found.items()}
    arrays = {name: np.ascontiguousarray(v) for name, v in values.items() if v is not None}
    write_shared(path, save(arrays, metadata={"names": json.dumps(list(values))}))


def _read(path: Path) -> Measured:
    groups: dict[str, dict[str, NDArray[Any] | None]] = {"rows": {}, "knn": {}, "relearned": {}}
    with safe_open(path, "numpy") as file:
        there = set(file.keys())
        for name in json.loads(file.metadata()["names"]):
            group, _, own = name.partition("/")
            groups[group][own] = file.get_tensor(name) if name in there else None
    return Measured(groups["rows"], groups["knn"], groups["relearned"][""])


def code_version() -> str:
    """Digest of the sources of the package `evaluation`; a change of any invalidates stored measurements."""
    return _digest([path.read_text(encoding="utf-8") for path in sorted(Path(evaluation.__file__).parent.glob("*.py"))])


def _digest(*values: Any) -> str:
    """Hexadecimal digest of arrays, strings, numbers, and dataclasses, dicts, lists and tuples of these.

    Raises TypeError for a value of another type.
    """
    digest = hashlib.blake2b(digest_size=20)

    def add(value: Any) -> None:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        if isinstance(value, np.ndarray) and value.dtype != object:
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        elif isinstance(value, dict):
            add([part for key in sorted(value) for part in (key, value[key])])
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            for part in value:
                add(part)
        elif value is None or isinstance(value, str | int | float):
            digest.update(f"{type(value).__name__}:{len(str(value))}:{value}".encode())
        else:
            raise TypeError(f"values of the type {type(value).__name__} cannot be digested")

    for value in values:
        add(value)
    return digest.hexdigest()
