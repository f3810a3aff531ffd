"""The page of successive requests, and its plot."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from expunge.reproduce.page import WHOLE, differences, published
from expunge.reproduce.presets import Preset
from expunge.reproduce.rounds import BEFORE

Entries = Sequence[Mapping[str, Any]]


def page_of_rounds(preset: Preset, found: Mapping[str, Any], picture: str, sample: bool) -> str:
    """Markdown page: accuracies by round, and every request after the last round and after its own round."""
    warning = f"\n\n**{WHOLE}**" if sample else ""
    asked = "\n".join(f"- {r['name']}, {r['rows']:,} training rows" for r in found["requests"])
    how = (
        "In each round, every method answers all requests so far, starting again from the original. Only exact "
        "deletion from shards above a cut goes on from its own last result, which gives the same bits. After each "
        "round all earlier requests are measured again. Retained accuracy is that of at most 10,000 rows, drawn once "
        "per round."
    )
    parts = [
        f"# {preset.title}\n\nPreset `{preset.name}`.{warning}",
        published(preset),
        f"## Requests\n\n{asked}\n\n{how}",
        f"## Accuracy on test rows of classes that stay, by round\n\n{_by_round(found, 'test')}\n\n"
        f"![Accuracy over rounds]({picture})",
        f"## Accuracy on retained training rows, by round\n\n{_by_round(found, 'retain')}",
        "## Every request after the last round: accuracy on its training rows\n\n"
        "The accuracy right after its own round is in brackets. `original` is the model before all rounds.\n\n"
        f"{_by_request(found, 'accuracy')}",
        "## The same: AUC of the loss attack, its rows against test rows of the same classes\n\n"
        "A value of 0.5 says nothing about membership. A lower one is over-forgetting, which is a trace as well.\n\n"
        f"{_by_request(found, 'auc')}",
        f"## Seconds to fit, by round\n\n{_by_round(found, 'fit_s', '{:.2f}')}",
        f"## Exact deletion\n\n{claims}" if (claims := exact_claims(found)) else "",
        differences(preset),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def exact_claims(found: Mapping[str, Any]) -> str:
    """Return for every exact method in how many rounds its claim holds, and what it changed; "" without one."""
    lines = []
    for name, entries in found["methods"].items():
        claims = [entry["exact"] for entry in entries if "exact" in entry]
        if not claims:
            continue
        line = f"`{name}`: the claim holds after {sum(c['holds'] for c in claims)} of {len(entries)} rounds. "
        line += f"In its last round it did this: {claims[-1]['procedure']}."
        if claims[-1]["changed"] is not None:
            line += f" Shards changed, by round: {', '.join(str(c['changed']) for c in claims)}."
        lines.append(line)
    return "\n\n".join(lines)


def draw_rounds(found: Mapping[str, Any]) -> bytes:
    """PNG with two plots over rounds: the test accuracy, and the highest accuracy on any class forgotten so far.

    If no request names classes, the second plot shows the highest accuracy on any request.
    """
    classes = [i for i, r in enumerate(found["requests"]) if r["kind"] == "classes"]
    looked_at = classes or list(range(len(found["requests"])))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes: Any = figure.subplots(1, 2)
    for name, entries in found["methods"].items():
        rounds = [i for i, e in enumerate(entries, 1) if "refused" not in e]
        shown = [e for e in entries if "refused" not in e]
        style = {"label": name, "marker": "o", "markersize": 3, "linewidth": 1, "linestyle": "--"}
        style |= {} if name == BEFORE else {"linestyle": "-"}
        axes[0].plot(rounds, [100 * e["test"] for e in shown], **style)
        asked = [[r["accuracy"] for i, r in enumerate(e["requests"]) if i in looked_at] for e in shown]
        axes[1].plot(rounds, [100 * max(a, default=np.nan) for a in asked], **style)
    axes[0].set(title="test rows of classes that stay, % right", xlabel="round")
    axes[1].set(title=f"{'class' if classes else 'request'} answered best of those so far, % right", xlabel="round")
    axes[1].legend(fontsize=7, loc="center left")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80, metadata={"Software": None})
    return out.getvalue()


def _by_round(found: Mapping[str, Any], key: str, form: str = "{:.1%}") -> str:
    count = len(found["requests"])
    lines = ["| | " + " | ".join(str(i) for i in range(1, count + 1)) + " |", "|" + "---|" * (count + 1)]
    for name, entries in found["methods"].items():
        if key == "fit_s" and name == BEFORE:
            continue
        cells = ["refused" if "refused" in e else form.format(e[key]) for e in entries]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_request(found: Mapping[str, Any], key: str) -> str:
    names = list(found["methods"])
    lines = ["| request | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for i, request in enumerate(found["requests"]):
        cells = [_then_and_now(found["methods"][name], i, key, name) for name in names]
        lines.append(f"| {request['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _then_and_now(entries: Entries, request: int, key: str, name: str) -> str:
    form = "{:.3f}" if key == "auc" else "{:.1%}"

    def cell(entry: Mapping[str, Any]) -> str:
        if "refused" in entry:
            return "refused"
        value = entry["requests"][request][key]
        return "–" if value is None else form.format(value)

    now, then = cell(entries[-1]), cell(entries[request])
    return now if name == BEFORE else f"{now} ({then})"
