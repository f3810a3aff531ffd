"""The page of a preset: our table beside the known published numbers, and the differences to the published setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from expunge.report.metrics import Metric, measured, some
from expunge.report.summary import CONTROL
from expunge.report.tables import candidates, claims_cells, headline, markdown_table
from expunge.reproduce.gaussians import Panel
from expunge.reproduce.presets import Preset
from expunge.reproduce.switches import AUGMENTED, LOGITS_CKA, OF_ENTRIES, SWITCHES

COLUMNS = some(
    "accuracy.retain",
    "accuracy.forget",
    "accuracy.test_retain",
    "accuracy.test_forget",
    "divergence.forget.kl",
    "divergence.forget.agreement",
    "membership.mia_lr_member",
    "cost.fit_s",
)
EXTRAS = {AUGMENTED: "retain, augmented", LOGITS_CKA: "CKA of logits"}
AS_PUBLISHED = ("loft-published",)
EXACT = ("loft", "ru-linear", "ru-zero-shot", "exact")
REFERENCES = ("original", "retrained")
REFERENCE, PUBLISHED, CORRECTED, SOLVER = "reference", "as published", "as published, artefacts off", "exact solver"
ORDER = (REFERENCE, "control", PUBLISHED, CORRECTED, SOLVER, "ours")
WHOLE = "These numbers are of drawn pictures. They show that the whole path works here, and nothing else."


@dataclass(frozen=True)
class Result:
    """Results of one run: the pipeline's `summary`, and `extras`, the values by switch and model."""

    run: str
    summary: Mapping[str, Any]
    extras: Mapping[str, Mapping[str, float | None]]


def of_runs(preset: Preset, results: Sequence[Result], switches: frozenset[str], sample: bool) -> str:
    """Markdown page: published numbers, a table per run, means over runs, switches, and differences."""
    parts = [_head(preset, sample), published(preset)]
    for result in results:
        parts.append(f"## Request {result.run}\n\n" if len(results) > 1 else "## Ours\n\n")
        parts[-1] += f"{_once(headline(result.summary))}\n\n{_table(preset, result, switches)}"
        parts[-1] += (
            _refused(result.summary) + f"\n\nThe full report of this run is `{result.run}/reports/report.html`."
        )
    if len(results) > 1:
        parts.append(f"## Mean and deviation over {len(results)} requests\n\n{_means(results)}")
    return "\n\n".join([*parts, _kinds(preset), _switches(switches), differences(preset)]).strip() + "\n"


def of_toy(preset: Preset, panels: Sequence[Panel], picture: str) -> str:
    """Markdown page of the toy: a table and its image."""
    lines = ["| | retained | forgotten | mean confidence on forgotten |", "|---|---|---|---|"]
    lines += [f"| {p.title} | {p.retained:.1%} | {p.forgotten:.1%} | {p.confidence:.3f} |" for p in panels]
    what = "Shares of test rows that the frozen head assigns to their class."
    table = "\n".join(lines)
    parts = [_head(preset, False), published(preset), f"## Ours\n\n{what}\n\n{table}"]
    return "\n\n".join([*parts, f"![Features before and after]({picture})", differences(preset)]) + "\n"


def published(preset: Preset) -> str:
    """Section with the known published numbers; the papers' own tables were not available for the presets."""
    if preset.paper is None:
        return "## Published\n\nThis setting is from no paper, so there is nothing to compare with."
    if not preset.published:
        return "## Published\n\nNot available: no number of this setting is known to us."
    lines = ["| published, from a secondary page | number | value |", "|---|---|---|"]
    for known in preset.published:
        metric = some(known["metric"])[0]
        lines.append(f"| {known['what']} | {metric.name} | {metric.form.format(known['value'])} |")
    return "## Published\n\n" + "\n".join(lines) + "\n\nAll other numbers of this setting are not available."


def _head(preset: Preset, sample: bool) -> str:
    about = f"Setting of {preset.paper}." if preset.paper else "A setting of our own."
    warning = f"\n\n**{WHOLE}**" if sample else ""
    return f"# {preset.title}\n\n{about} Preset `{preset.name}`.{warning}"


def _table(preset: Preset, result: Result, switches: frozenset[str]) -> str:
    """Table of published numbers, references, and entries by kind, with those of the grid in its order."""
    entries = list(preset.entries(switches))
    kinds = {name: _kind(name, entries, switches) for name, _ in candidates(result.summary)}
    order = sorted(kinds, key=lambda n: (ORDER.index(kinds[n]), entries.index(n) if n in entries else 0))
    known_blocks = dict(candidates(result.summary))
    blocks = {name: known_blocks[name] for name in order}
    used = measured(COLUMNS, blocks.values())
    more = [EXTRAS[name] for name in EXTRAS if name in switches]
    head = ["", "what", *(m.heading for m in used), *more, "utility", "shown"]
    body = []
    for known in preset.published:
        cells = [m.form.format(known["value"]) if m.path == known["metric"] else "n/a" for m in used]
        body.append([known["what"], "published, secondary page", *cells, *["n/a"] * len(more), "", ""])
    for name, block in blocks.items():
        extra = [_extra(result.extras[s], name) for s in EXTRAS if s in switches]
        cells = [m.text(block) for m in used]
        body.append([name, kinds[name], *cells, *extra, *claims_cells(block)])
    return markdown_table(head, body)


def _extra(values: Mapping[str, float | None], name: str) -> str:
    own = [v for key, v in values.items() if key == name or (name == "retrained" and key.startswith("retrained-"))]
    known = [v for v in own if v is not None]
    return f"{np.mean(known):.3f}" if known else "–"


def _kind(name: str, entries: Sequence[str], switches: frozenset[str]) -> str:
    if name in REFERENCES:
        return REFERENCE
    if name == CONTROL:
        return "control"
    if name in AS_PUBLISHED or (name in entries and switches >= OF_ENTRIES):
        return PUBLISHED
    if name in entries:
        return CORRECTED
    return SOLVER if name in EXACT else "ours"


def _means(results: Sequence[Result]) -> str:
    """Table of mean accuracies over the requests, by model, with standard deviations (ddof 1)."""
    metrics = [m for m in COLUMNS if m.path.startswith("accuracy.")]
    blocks = [dict(candidates(r.summary)) for r in results]
    body = []
    for name in blocks[0]:
        own = [b[name] for b in blocks if name in b]
        body.append([name, *(_mean(m, own) for m in metrics)])
    return markdown_table(["", *(m.heading for m in metrics)], body)


def _mean(metric: Metric, blocks: Sequence[Mapping[str, Any]]) -> str:
    values = [v for b in blocks if (v := metric.value(b)) is not None]
    if not values:
        return "–"
    spread = f" ± {np.std(values, ddof=1):.1%}" if len(values) > 1 else ""
    return f"{np.mean(values):.1%}{spread}"


def _once(text: str) -> str:
    """The headline without the sentences of single methods, whose verdicts are in the table."""
    return text.split(" Nothing was shown of any method")[0] + (
        " Nothing was shown of any method." if " Nothing was shown of any method" in text else ""
    )


def _refused(summary: Mapping[str, Any]) -> str:
    lines = [f"- {name} was refused: {why}" for name, why in summary.get("refused", {}).items()]
    return "\n\n" + "\n".join(lines) if lines else ""


def _kinds(preset: Preset) -> str:
    grid = (
        " Entries `std-` and `zero-` are standard and zero-shot Representation Unlearning with a linear map, one (`h`) "
        "or two (`h-h`) hidden layers; the last part is beta."
        if preset.grid
        else ""
    )
    return (
        f"`as published`: the paper's solver and settings; `artefacts off`: without what is switched off below.{grid} "
        "`exact solver`: the same objective at its optimum, with our settings where the paper searches. `ours`: "
        "methods of this project and of others. The verdict is in the last two columns; see docs/verdict.md."
    )


def _switches(switches: frozenset[str]) -> str:
    lines = ["| switch | here | what that means |", "|---|---|---|"]
    for name, (on, off) in SWITCHES.items():
        lines.append(f"| `{name}` | {'on' if name in switches else 'off'} | {on if name in switches else off} |")
    return "## Known artefacts\n\n" + "\n".join(lines)


def differences(preset: Preset) -> str:
    """Return the section on what is not as published, "" where everything is."""
    return "## What is not as published\n\n" + "\n".join(f"- {d}" for d in preset.differs) if preset.differs else ""
