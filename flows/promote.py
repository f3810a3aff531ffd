"""Promotion by a person: publish the review, ask for a decision and a reason in a form, then promote the version."""

from __future__ import annotations

import io
from contextlib import chdir
from pathlib import Path
from typing import Annotated, Literal

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.flow_runs import pause_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field, field_validator
from rich.console import Console

from expunge.promotion.review import Review, in_words
from expunge.promotion.review_terminal import show as print_review
from expunge.promotion.session import ReviewSession
from expunge.system.errors import PromotionError
from flows.naming import when
from flows.publish import PROMOTED, where_to_look


class Decision(RunInput):
    """Fields of the form."""

    approver: str = Field(
        min_length=1, max_length=200, title="Your name", description="The ledger records who decided."
    )
    decision: Literal["promote", "refuse"] = Field(
        title="Decision", description="If you promote it, the version serves at once."
    )
    reason: str = Field(
        min_length=3, max_length=1000, title="Reason", description="The ledger keeps it for good. Name no people."
    )

    @field_validator("reason", "approver")
    @classmethod
    def _says_something(cls, given: str) -> str:
        if not given.strip():
            raise ValueError("a reason and a name are needed")
        return given.strip()


def run_name() -> str:
    """Return the name of a flow run."""
    parameters = flow_run.get_parameters() or {}
    return f"promote {parameters.get('version', 'challenger')}? · {when()}"


@flow(name="promote", flow_run_name=run_name, log_prints=True)
def promote(
    workspace: str = ".",
    version: str = "challenger",
    model: str | None = None,
    wait_hours: Annotated[float, Field(gt=0, le=24 * 90)] = 72.0,
) -> State[object]:
    """Show a version beside the champion, wait for a person's decision, and promote it.

    A version that does not pass the gates is refused before anybody is asked.

    Args:
        workspace: Folder with the data and models of the run that registered the version; "." is the deployment's own.
        version: Number of a version, or the alias challenger.
        model: Name of the registered model; the one that the last run registered if left out.
        wait_hours: How long to wait for a decision; the run fails after that.
    """
    root = Path(workspace).resolve()
    with chdir(root):
        promoter = ReviewSession(model).promoter
        promoter.record_by_hand()
        head = promoter.history().head
        seen = ReviewSession(model).review(version)
    challenger = seen.challenger
    show(root, seen)
    if seen.serves:
        return Completed(name="Serves already", message=f"Version {challenger.version} is the champion.")
    if seen.failed:
        raise PromotionError(
            f"version {challenger.version} may not serve:\n" + "\n".join(f"- {f}" for f in seen.failed)
        )
    asked = pause_flow_run(
        wait_for_input=Decision.with_initial_data(description=form(root, seen)),
        timeout=int(wait_hours * 3600),
        poll_interval=5,
    )
    get_run_logger().info("%s: %s", asked.decision, asked.reason)
    if asked.decision == "refuse":
        return Completed(name="Refused", message=f"Version {challenger.version}: {asked.reason}")
    with chdir(root):
        # `seen` has the version's number, because the alias may have moved while the run waited. The ledger's head
        # shows whether something else was decided in the meantime.
        entry = ReviewSession(model).promote(seen, asked.reason, head, asked.approver)
    emit_event(
        PROMOTED,
        resource={
            "prefect.resource.id": f"expunge.model.{challenger.name}",
            "prefect.resource.name": challenger.name,
            "expunge.claims": challenger.tags.get("claims", "none"),
        },
        payload={
            "version": challenger.version,
            "instead_of": seen.champion.version if seen.champion else None,
            "ledger_entry": entry.seq,
        },
    )
    return Completed(
        name="Promoted", message=f"Version {challenger.version} is the champion. Ledger entry {entry.seq}."
    )


def form(root: Path, seen: Review) -> str:
    """Return the text above the form: verdict, claims, changed predictions, findings and links."""
    v = seen.challenger
    instead = f"version {seen.champion.version}" if seen.champion else "the original classifier"
    changed = [
        f"- {part}: {p.changed.sum():,} of {len(p.labels):,} predictions change" for part, p in seen.parts.items()
    ]
    warnings = [f"- **Attention:** {finding}" for finding in seen.findings]
    return "\n".join(
        [
            f"## Version {v.version} of {v.name}, instead of {instead}",
            "",
            f"- Forgets: **{seen.forgets[1] or 'not known here'}**",
            f"- Shown: **{v.tags.get('claims', 'none')}** ({v.tags.get('method', 'unknown method')})",
            f"- Utility: {v.tags.get('utility', 'cannot tell')}",
            f"- Verdict: {v.tags.get('verdict', 'none')}",
            f"- Failed gates: {in_words(v.tags.get('failed_gates', 'none'))}",
            *changed,
            *warnings,
            where_to_look(root, v.run_id),
            "",
            "The whole review is the artifact `promotion-review` of this run.",
        ]
    )


def show(root: Path, seen: Review) -> None:
    """Publish the review of `expunge review` as an artifact."""
    out = io.StringIO()
    print_review(seen, Console(file=out, width=140, highlight=False, markup=False))
    create_markdown_artifact(
        key="promotion-review",
        markdown=f"{form(root, seen)}\n\n```\n{out.getvalue()}\n```\n",
        description=f"Version {seen.challenger.version} beside the champion",
    )
