"""Start and end of logged runs: the times of the stages that they describe, not the moment at which they are logged."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from mlflow import MlflowClient

Span = tuple[float, float]  # start and end in seconds since 1970


def milliseconds(span: Span | tuple[float, None] | None, which: int) -> int | None:
    """Return the start (0) or the end (1) of a span as MLflow stores it; None, which means now, if it is not known."""
    at = None if span is None else span[which]
    return None if at is None else round(1000 * at)


def pipeline_start(client: MlflowClient, experiment_id: str, spans: Iterable[Span | None]) -> float:
    """Return when the pipeline run began that is logged now: the start of the first stage that ran for it.

    Stages that began before the previous pipeline run of the experiment was logged came from the cache, and do not
    count. Without other stages the run begins now. `spans`: those of the run's stages; None where one is not known.
    """
    newest = client.search_runs(
        [experiment_id], "tags.role = 'pipeline'", max_results=1, order_by=["attributes.end_time DESC"]
    )
    logged = (newest[0].info.end_time or 0) / 1000 if newest else 0.0
    return min((span[0] for span in spans if span is not None and span[0] >= logged), default=time.time())


@contextmanager
def end_kept(client: MlflowClient, run_id: str) -> Iterator[None]:
    """Restore the end of a finished run afterwards, because MLflow sets it anew whenever it opens the run."""
    ended = client.get_run(run_id).info.end_time
    yield
    client.set_terminated(run_id, end_time=ended)
