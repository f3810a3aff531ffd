"""Quality gates: Great Expectations on data frames with one row of scalars per sample. Only this module imports it.

A gate builds a frame, checks a suite that is defined here, writes Data Docs, and returns a report that is the same for
the same data. Neither the docs nor the report contain ids of rows or people: failures are counted, not listed.
"""

from __future__ import annotations

import logging
import math
import shutil
from pathlib import Path
from typing import Any

import great_expectations as gx
import great_expectations.expectations as gxe
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expunge.data.dataset import Dataset
from expunge.data.schema import FORGET, PARTS, RAW, RETAIN, SPLITS, TEST_FORGET, TEST_RETAIN, TEXT, TRAIN, UNSEEN
from expunge.data.split import ASSIGNMENT, Split
from expunge.features.store import FeatureStore
from expunge.system.errors import QualityError
from expunge.system.files import replace_dir

# Results contain counts of unexpected values but not the values, which may be ids.
RESULT_FORMAT = {"result_format": "BASIC", "partial_unexpected_count": 0}
ALL_ZERO_SHARE = 0.99  # a ReLU may give a few all-zero feature rows; many mean a dead model


def validate_dataset(directory: Path | str, docs_dir: Path | str) -> dict[str, Any]:
    """Check the dataset in `directory`, write Data Docs to `docs_dir` and return the report.

    The ids must be unique, labels and splits known, images as large as recorded, texts not empty, and every class in
    the training rows.

    Returns `{"success", "suite", "rows", "checks"}`. Raises QualityError, which names the failed checks, after the Data
    Docs were written to `docs_dir`, and ManifestError if the directory disagrees with its manifest.
    """
    dataset = Dataset(directory)
    frame = dataset_frame(dataset)
    n_classes = len(dataset.class_names)
    unseen = dataset.manifest.get("rows_unseen", 0)
    suite = [
        gxe.ExpectTableRowCountToEqual(value=dataset.manifest["rows_train"] + dataset.manifest["rows_test"] + unseen),
        gxe.ExpectColumnValuesToNotBeNull(column="sample_id"),
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        gxe.ExpectColumnValuesToBeBetween(column="label", min_value=0, max_value=n_classes - 1),
        gxe.ExpectColumnDistinctValuesToBeInSet(column="split", value_set=[*SPLITS, *([UNSEEN] if unseen else [])]),
        gxe.ExpectColumnDistinctValuesToEqualSet(column="train_label", value_set=list(range(n_classes))),
        gxe.ExpectColumnValuesToBeBetween(column="content_bytes", min_value=1),
    ]
    if dataset.encoding != TEXT:
        suite += [
            gxe.ExpectColumnValuesToBeBetween(column="height", min_value=1),
            gxe.ExpectColumnValuesToBeBetween(column="width", min_value=1),
            gxe.ExpectColumnValuesToBeInSet(column="channels", value_set=[1, 3]),
        ]
    if dataset.encoding == RAW:
        suite.append(gxe.ExpectColumnPairValuesToBeEqual(column_A="content_bytes", column_B="pixels"))
    return _check("dataset", frame, suite, Path(docs_dir))


def validate_split(directory: Path | str, dataset_dir: Path | str, docs_dir: Path | str) -> dict[str, Any]:
    """Check that each row of the dataset is in exactly one known part, and that the counts of the request are met.

    The part must fit the split of the row. Returns and raises as `validate_dataset` does.
    """
    dataset, split = Dataset(dataset_dir), Split(directory)
    frame = split_frame(split, dataset)
    suite = [
        gxe.ExpectTableRowCountToEqual(value=dataset.rows),
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        gxe.ExpectColumnValuesToBeInSet(column="matches_dataset", value_set=[1]),
        gxe.ExpectColumnValuesToBeInSet(column="part", value_set=list(PARTS)),
        gxe.ExpectColumnValuesToBeInSet(column="fits_split", value_set=[1]),
    ]
    for part, key in ((FORGET, "forget_rows"), (RETAIN, "retain_rows")):
        count = split.request[key]
        suite.append(gxe.ExpectColumnSumToBeBetween(column=part, min_value=count, max_value=count))
        suite.append(gxe.ExpectColumnMaxToBeBetween(column=part, min_value=1))
    return _check("split", frame, suite, Path(docs_dir))


def validate_features(directory: Path | str, dataset_dir: Path | str, docs_dir: Path | str) -> dict[str, Any]:
    """Check that features are finite and of the manifest's dimension, and that they agree with the dataset.

    There must be one row of features per row of the dataset, in its order and with its labels. Returns and raises as
    `validate_dataset` does.
    """
    dataset, store = Dataset(dataset_dir), FeatureStore(directory, verify=True)
    frame = feature_frame(store, dataset)
    largest = float(np.finfo(np.float32).max)
    suite = [
        gxe.ExpectTableRowCountToEqual(value=dataset.rows),
        gxe.ExpectColumnValuesToBeUnique(column="sample_id"),
        gxe.ExpectColumnValuesToBeInSet(column="matches_dataset", value_set=[1]),
        gxe.ExpectColumnValuesToBeInSet(column="label_agrees", value_set=[1]),
        gxe.ExpectColumnValuesToBeInSet(column="split_agrees", value_set=[1]),
        gxe.ExpectColumnValuesToBeInSet(column="dim", value_set=[store.dim]),
        gxe.ExpectColumnValuesToBeInSet(column="n_nonfinite", value_set=[0]),
        gxe.ExpectColumnValuesToNotBeNull(column="norm"),
        gxe.ExpectColumnValuesToBeBetween(column="norm", max_value=largest),
        gxe.ExpectColumnValuesToBeBetween(column="n_zero", max_value=store.dim - 1, mostly=ALL_ZERO_SHARE),
    ]
    return _check("features", frame, suite, Path(docs_dir))


def dataset_frame(dataset: Dataset) -> pd.DataFrame:
    """Return a frame with one row per sample.

    Its columns are sample_id, label, split, train_label (missing for test rows) and content_bytes; for images also
    height, width, channels and pixels.
    """
    sizes = [] if dataset.encoding == TEXT else ["height", "width", "channels"]
    frame: pd.DataFrame = dataset.table(["sample_id", "label", "split", *sizes]).to_pandas()
    frame["train_label"] = frame["label"].where(frame["split"] == TRAIN)
    frame["content_bytes"] = dataset.content_bytes()
    if sizes:
        frame["pixels"] = frame["height"].astype("int64") * frame["width"] * frame["channels"]
    return frame


def split_frame(split: Split, dataset: Dataset) -> pd.DataFrame:
    """Return a frame with one row per assignment.

    Its columns are sample_id, part, and the 0/1 columns matches_dataset, fits_split, forget and retain.
    """
    table = pq.read_table(split.directory / ASSIGNMENT)
    reference = dataset.table(["sample_id", "split"])
    frame: pd.DataFrame = table.select(["sample_id", "part"]).to_pandas()
    in_order = table["row"].to_numpy() == np.arange(len(table))
    frame["matches_dataset"] = _agrees(table["sample_id"], reference["sample_id"]) * in_order
    allowed = {"train": (RETAIN, FORGET), "test": (TEST_RETAIN, TEST_FORGET), UNSEEN: (UNSEEN,)}
    splits = reference["split"].to_pylist()[: len(table)]
    fits = [part in allowed.get(s, ()) for part, s in zip(frame["part"], splits, strict=False)]
    frame["fits_split"] = np.array(fits + [False] * (len(table) - len(fits)), dtype=int)
    for part in (FORGET, RETAIN):
        frame[part] = (frame["part"] == part).astype(int)
    return frame


def feature_frame(store: FeatureStore, dataset: Dataset) -> pd.DataFrame:
    """Return a frame with one row per feature vector.

    Its columns are ids, agreement with the dataset (0/1), dim, norm, n_nonfinite, n_zero, min and max. Features are
    streamed, so memory grows with the number of rows but not with their dimension. A vector with a value that is not
    finite has NaN as norm, minimum and maximum.
    """
    columns = {name: store.column(name) for name in ("sample_id", "split", "label")}
    frame = pd.DataFrame(columns)
    reference = dataset.table(["sample_id", "split", "label"])
    for column, name in (("matches_dataset", "sample_id"), ("split_agrees", "split"), ("label_agrees", "label")):
        frame[column] = _agrees(pa.chunked_array([pa.array(columns[name])]), reference[name])
    scalars = np.full((len(frame), 6), np.nan)
    for first, z in store.iter_z():
        rows = slice(first, first + len(z))
        finite = np.isfinite(z)
        whole = finite.all(axis=1)
        scalars[rows, 0] = z.shape[1]
        scalars[rows, 1] = (~finite).sum(axis=1)
        scalars[rows, 2] = (z == 0).sum(axis=1)
        norms = np.sqrt(np.einsum("nd,nd->n", z, z, dtype=np.float64))
        for k, values in ((3, norms), (4, z.min(axis=1)), (5, z.max(axis=1))):
            scalars[rows, k] = np.where(whole, values, np.nan)
    for k, name in enumerate(("dim", "n_nonfinite", "n_zero", "norm", "min", "max")):
        frame[name] = scalars[:, k].astype("int64") if k < 3 else scalars[:, k]
    return frame


def _agrees(column: pa.ChunkedArray, reference: pa.ChunkedArray) -> np.ndarray:
    """Return int `(len(column),)`, which is 1 where `column` equals `reference` at the same position.

    It is 0 where `column` differs or has no counterpart.
    """
    n = min(len(column), len(reference))
    out = np.zeros(len(column), dtype=int)
    out[:n] = pc.equal(column.slice(0, n).cast(reference.type), reference.slice(0, n)).to_numpy()
    return out


def _check(name: str, frame: pd.DataFrame, suite: list[Any], docs_dir: Path) -> dict[str, Any]:
    """Run the suite on the frame, write Data Docs to `docs_dir`, and return the report or raise QualityError."""
    docs_dir.parent.mkdir(parents=True, exist_ok=True)
    tmp = docs_dir.with_name(f".{docs_dir.name}.tmp")
    shutil.rmtree(tmp, ignore_errors=True)
    try:
        result = _run_suite(name, frame, suite, tmp)
        replace_dir(tmp, docs_dir)
    finally:
        shutil.rmtree(tmp, ignore_errors=True)
    checks = sorted((_as_check(r) for r in result.results), key=lambda c: (c["column"], c["check"], str(c["expected"])))
    report = {"success": bool(result.success), "suite": name, "rows": len(frame), "checks": checks}
    if not report["success"]:
        failed = [c for c in checks if not c["success"]]
        raise QualityError(
            f"quality gate {name}: {len(failed)} of {len(checks)} checks failed: "
            + "; ".join(_describe(c) for c in failed)
            + f". Details: {docs_dir / 'index.html'}"
        )
    return report


def _run_suite(name: str, frame: pd.DataFrame, suite: list[Any], site_dir: Path) -> Any:
    """Run one checkpoint in an ephemeral context, with Data Docs in `site_dir`, and return its validation result."""
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    for site in list(context.get_site_names()):
        context.delete_data_docs_site(site)
    store = {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(site_dir.resolve())}
    context.add_data_docs_site("docs", {"class_name": "SiteBuilder", "store_backend": store})
    asset = context.data_sources.add_pandas("frames").add_dataframe_asset(name)
    definition = gx.ValidationDefinition(
        name=name,
        data=asset.add_batch_definition_whole_dataframe("all rows"),
        suite=context.suites.add(gx.ExpectationSuite(name=name, expectations=suite)),
    )
    checkpoint = gx.Checkpoint(
        name=name,
        validation_definitions=[context.validation_definitions.add(definition)],
        actions=[gx.checkpoint.UpdateDataDocsAction(name="docs", site_names=["docs"])],
        result_format=RESULT_FORMAT,
    )
    run = context.checkpoints.add(checkpoint).run(batch_parameters={"dataframe": frame})
    (result,) = run.run_results.values()
    return result


def _as_check(result: Any) -> dict[str, Any]:
    """Return the part of one result that depends only on the data."""
    config = result.expectation_config
    arguments = {k: v for k, v in config.kwargs.items() if k != "batch_id" and v is not None}
    columns = [arguments.pop(k) for k in ("column", "column_A", "column_B") if k in arguments]
    found = result.result or {}
    check = {
        "check": config.type.removeprefix("expect_"),
        "column": ", ".join(columns),
        "expected": _plain(arguments),
        "success": bool(result.success),
    }
    for key, source in (("observed", "observed_value"), ("unexpected_rows", "unexpected_count")):
        if found.get(source) is not None:
            check[key] = _plain(found[source])
    if not check["success"] and result.exception_info.get("raised_exception"):
        check["error"] = str(result.exception_info["exception_message"]).splitlines()[0]
    return check


def _describe(check: dict[str, Any]) -> str:
    text = f"{check['column'] or 'table'}: {check['check'].replace('_', ' ')}"
    if "unexpected_rows" in check:
        return f"{text} ({check['unexpected_rows']} rows do not)"
    if "observed" in check:
        return f"{text} (expected {check['expected']}, found {check['observed']})"
    return f"{text} ({check.get('error', 'no result')})"


def _plain(value: Any) -> Any:
    """Return `value` as plain JSON types, without numpy and pandas scalars; values that are not finite become None."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
