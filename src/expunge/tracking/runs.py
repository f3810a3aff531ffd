"""Log a pipeline run to MLflow: a parent run, and a child run per reference and method, with the same metric names."""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from mlflow import MlflowClient
from mlflow.entities import Dataset as DatasetEntity
from mlflow.entities import DatasetInput, InputTag, Metric, Param
from mlflow.exceptions import MlflowException

from expunge.evaluation.claims import claim_tags, shown_words
from expunge.system.errors import TrackingError
from expunge.system.monitor import Series
from expunge.tracking.run_times import Span, milliseconds, pipeline_start
from expunge.tracking.store import connect, end_interrupted, experiment_of, refusals

# Limits of MLflow's batch call and of its database columns.
METRICS_PER_CALL = 1000
PARAMS_PER_CALL = 100
TAG_LENGTH = 8000
DATASET_DIGEST = 36
ROW_IDS = {"sample_id", "subject"}
# Blocks of the summary that only some candidates have, or that hold no metrics to compare.
NOT_COMPARED = {"spread", "seeds", "settings", "verdict"}

T = TypeVar("T")
Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class LoggedDataset:
    """A logged input. `digest`: `sha256:...`, cut to the 36 characters that MLflow stores. `source`: its path."""

    name: str
    digest: str
    counts: Mapping[str, int]
    source: str = "data/dataset"


@dataclass(frozen=True)
class Detail:
    """The content of a child run besides its entry in the summary.

    `curves`: `(step, value)` pairs of iterative procedures, by metric name.
    `usage`: samples of processor and memory use from `expunge.system.monitor`; MLflow shows them as system metrics.
    `artifacts`: files or directories, logged under their own names.
    `span`: start and end of its stages; the run gets these times.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    usage: Mapping[str, Series] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    artifacts: Sequence[Path] = ()
    span: Span | None = None


@dataclass(frozen=True)
class RunIds:
    """Ids of the experiment, the parent run, and the child runs by name."""

    experiment: str
    parent: str
    children: Mapping[str, str]


def metrics_of(candidate: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of one candidate of the summary under grouped names.

    `{"divergence": {"forget": {"kl": 0.1}}}` becomes `{"divergence/forget_kl": 0.1}`. Characters that MLflow does
    not accept become `_`. Strings, flags, nulls, lists and the blocks in NOT_COMPARED are left out.
    """
    out: dict[str, float] = {}

    def walk(value: Any, path: tuple[str, ...]) -> None:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                walk(inner, (*path, _plain(str(key))))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            group, rest = path[0], path[1:]
            out["/".join((group, "_".join(rest))) if rest else group] = float(value)

    walk({key: value for key, value in candidate.items() if key not in NOT_COMPARED}, ())
    return out


def curves_of(candidate: Mapping[str, Any]) -> dict[str, Curve]:
    """Return the lists named `curve`, one value per step from 0; `{"relearn": {"curve": [...]}}` is `relearn/curve`."""
    return {
        f"{_plain(group)}/curve": list(enumerate(block["curve"]))
        for group, block in candidate.items()
        if isinstance(block, Mapping) and isinstance(block.get("curve"), list)
    }


def log_pipeline_run(
    summary: Mapping[str, Any],
    *,
    experiment: str,
    run_name: str,
    description_md: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    dataset: LoggedDataset,
    per_method: Mapping[str, Detail] | None = None,
    seeds: Mapping[int, Mapping[str, Any]] | None = None,
    usage: Mapping[str, Series] | None = None,
    artifacts: Sequence[Path] = (),
) -> RunIds:
    """Log `reports/summary.json` as a parent run and one child per reference, method and retrained seed.

    The parent has the description, the parameters, the artifacts, the dataset and the request as inputs (digests and
    counts), and the metrics of the selected method, so that pipeline runs can be compared with each other.
    `seeds`: the block of each retrained model, by seed. If there are several, each gets a child run named
    `seed_run(seed)`, which is also its key in `per_method`.
    `usage`: samples of stages that belong to no single candidate.
    `tags` are set on every run; `claims`, `utility` and `failed_gates` are added from each verdict. The parameters
    `claims`, `kind` and `method` are on every run too: MLflow's page for comparing runs opens on the first parameters
    by name, so the settings of a method are logged as `settings.NAME`. Runs have the times of their stages. On an
    error, all runs that were begun are marked FAILED, if the store still answers. Raises TrackingError if the store
    refuses a call, or for an artifact that holds ids of rows.
    """
    per_method = dict(per_method or {})
    methods = summary["methods"]
    # The control is in both blocks if it was also requested as a method; it is logged once.
    repeated = {name.replace("-", "_") for name in methods}
    references = {k: v for k, v in summary["references"].items() if v and k.replace("-", "_") not in repeated}
    each = {seed_run(seed): block for seed, block in (seeds or {}).items()} if len(seeds or {}) > 1 else {}
    candidates = references | each | methods
    if unknown := sorted(set(per_method) - set(candidates)):
        raise ValueError(f"details for {unknown}, which are not in the summary; it has {sorted(candidates)}")
    for path in [*artifacts, *(p for detail in per_method.values() for p in detail.artifacts)]:
        refuse_row_ids(path)

    request, selected = summary["request"], summary.get("selected")
    common = {**tags, "request": request["digest"], "model": summary["model"]["name"], **_source(tags)}
    begun: dict[str, Span | tuple[float, None] | None] = {}
    client = connect()
    with refusals(f"logging {run_name!r}"):
        experiment_id = experiment_of(client, experiment).experiment_id
        end_interrupted(client, experiment_id, request["digest"])

        def begin(name: str, run_tags: Mapping[str, str], span: Span | tuple[float, None] | None) -> str:
            run = client.create_run(experiment_id, milliseconds(span, 0), dict(run_tags), name)
            run_id: str = run.info.run_id
            begun[run_id] = span
            return run_id

        try:
            chosen = candidates.get(selected, {})
            first = pipeline_start(client, experiment_id, (detail.span for detail in per_method.values()))
            parent = begin(
                run_name,
                {
                    **common,
                    **_verdict_tags(chosen),
                    "role": "pipeline",
                    "selected": selected or "none",
                    "mlflow.note.content": clip(description_md, TAG_LENGTH),
                },
                (first, None),
            )
            client.log_inputs(parent, datasets=_inputs(dataset, request))
            counts = {f"request/{k}": float(v) for k, v in request.items() if k.endswith("_rows")}
            everything = {**metrics_of(chosen), **counts}
            shared = _shared_params(chosen, "pipeline", selected or "none")
            _log(client, parent, Detail(everything, {**shared, **params}, usage=usage or {}, artifacts=artifacts))
            children = {}
            # MLflow lists the newest run first; the original comes last here and leads runs of equal or unknown times.
            for name in reversed(candidates):
                role = "method" if name in methods else "seed" if name in each else "reference"
                detail = per_method.get(name, Detail())
                child_tags = {**common, **_verdict_tags(candidates[name]), "role": role, "method": name, **detail.tags}
                children[name] = begin(name, {**child_tags, "mlflow.parentRunId": parent}, detail.span)
                metrics = {**metrics_of(candidates[name]), **detail.metrics}
                curves = {**curves_of(candidates[name]), **detail.curves}
                settings = {f"settings.{key}": value for key, value in detail.params.items()}
                params_of = {**_shared_params(candidates[name], role, name), **settings}
                _log(client, children[name], replace(detail, metrics=metrics, curves=curves, params=params_of))
        except BaseException:
            # If the server is gone, one attempt takes a minute. What stays RUNNING is ended by the next call.
            with suppress(MlflowException):
                for run_id in begun:
                    client.set_terminated(run_id, "FAILED")
            raise
        for run_id, span in reversed(begun.items()):
            client.set_terminated(run_id, "FINISHED", milliseconds(span, 1))
        # The client repeats a call whose answer was lost, so that a run may have been created twice.
        end_interrupted(client, experiment_id, request["digest"])
    return RunIds(experiment_id, parent, children)


def seed_run(seed: int) -> str:
    """Return the run name of one retrained model."""
    return f"retrained, seed {seed}"


def clip(text: str, limit: int) -> str:
    """Return `text`, or if it is longer than `limit` its first complete lines and a note."""
    if len(text) <= limit:
        return text
    note = "\n\n*The rest is in the run's artifacts.*"
    return text[: limit - len(note)].rpartition("\n")[0] + note


def refuse_row_ids(path: Path) -> None:
    """Raise TrackingError if a file, or one below a directory, holds ids of rows or people, or if there is no file.

    A Parquet file counts as holding ids; CSV and JSON files are searched for the names in ROW_IDS.
    """
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    if not files or not path.exists():
        raise TrackingError(f"{path}: there is nothing to log; run the stage that writes this")
    for file in files:
        if file.suffix == ".parquet" or ROW_IDS & _names_in(file):
            raise TrackingError(
                f"{file}: holds ids of rows, which must not be logged; leave it out, or write it without them"
            )


def _names_in(file: Path) -> set[str]:
    """Return the column names of a CSV file or the keys of a JSON file; an empty set for other files."""
    if file.suffix == ".csv":
        with file.open(newline="", encoding="utf-8") as f:
            return set(next(csv.reader(f), []))
    if file.suffix == ".json":
        names: set[str] = set()
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=lambda pairs: names.update(k for k, _ in pairs))
        return names
    return set()


def _log(client: MlflowClient, run_id: str, detail: Detail) -> None:
    now = int(time.time() * 1000)
    metrics = [Metric(_plain(k), float(v), now, 0) for k, v in detail.metrics.items()]
    metrics += [Metric(_plain(k), float(v), now, step) for k, curve in detail.curves.items() for step, v in curve]
    for name, series in detail.usage.items():
        samples = enumerate(zip(series["time"], series["value"], strict=True))
        metrics += [Metric(f"system/{_plain(name)}", value, int(at * 1000), step) for step, (at, value) in samples]
    infinite = sorted({m.key for m in metrics if math.isinf(m.value)})
    if infinite:
        raise TrackingError(f"metrics {infinite} are infinite; only finite numbers can be logged")
    params = [Param(_plain(k), str(v)) for k, v in detail.params.items()]
    for some in _chunks(metrics, METRICS_PER_CALL):
        client.log_batch(run_id, metrics=some)
    for some_params in _chunks(params, PARAMS_PER_CALL):
        client.log_batch(run_id, params=some_params)
    for path in detail.artifacts:
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))


def _source(tags: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that MLflow shows as a run's source: dvc.yaml and the Git commit."""
    commit = {"mlflow.source.git.commit": tags["git_commit"]} if "git_commit" in tags else {}
    return {"mlflow.source.name": "dvc.yaml", "mlflow.source.type": "LOCAL", **commit}


def _shared_params(candidate: Mapping[str, Any], kind: str, method: str) -> dict[str, str]:
    """Return the parameters that every run has: what was shown of it, what it is, and its method."""
    verdict = candidate.get("verdict")
    return {"claims": shown_words(verdict) if verdict else "not judged", "kind": kind, "method": method}


def _verdict_tags(candidate: Mapping[str, Any]) -> dict[str, str]:
    verdict = candidate.get("verdict")
    if not verdict:
        return {}
    return claim_tags(verdict)


def _inputs(dataset: LoggedDataset, request: Mapping[str, Any]) -> list[DatasetInput]:
    counts = {k: v for k, v in request.items() if k.endswith("_rows")}
    done = "labels corrected" if request["selector"] == "correct" else f"{request['selector']} forgotten"
    split = LoggedDataset(f"{dataset.name}, {done}", request["digest"], counts, "data/split")
    return [_input(dataset, "dataset"), _input(split, "erasure request")]


def _input(dataset: LoggedDataset, context: str) -> DatasetInput:
    entity = DatasetEntity(
        name=dataset.name,
        digest=dataset.digest.removeprefix("sha256:")[:DATASET_DIGEST],
        source_type="local",
        source=json.dumps({"path": dataset.source}),
        profile=json.dumps(dict(dataset.counts)),
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])


def _plain(name: str) -> str:
    """Return `name` in characters that MLflow accepts: letters, digits, `_-./` and spaces; others become `_`."""
    return "".join(c if c.isalnum() or c in "_-./ " else "_" for c in name)


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while some := list(islice(iterator, size)):
        yield some
