"""The text of docs/results.md: for each experiment a table over seeds and its findings in sentences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from expunge.evaluation.criteria import CLAIMS
from expunge.report.metrics import Metric
from expunge.report.summary import CONTROL
from expunge.report.tables import COLUMNS, MANY_MODELS
from expunge.results.pooled import Pooled, PooledVerdict, judge
from expunge.results.variants import Variant

KL, FORGET, MEMBER = "divergence.forget.kl", "accuracy.forget", "membership.mia_lr_member"
FIT, RETRAIN = "cost.fit_s", "cost.retrain_s"

HEAD = """# Results

Written by `python -m expunge.results`, which runs every experiment below and is the only author of this page. A cell is
the mean over training seeds ± their standard deviation. Every seed has an original model of its own and three models
retrained without the forgotten rows, with seeds of their own; the target of every column is the row of the retrained
models. KL (nats) and agreement compare with the retrained models of the same seed on forgotten rows; in the row of the
retrained models they compare the seeds with each other, which is as near as two models trained without the rows come.

Every run is judged by itself, on its own rows and retrained models (docs/verdict.md). The last columns count, over the
training seeds, how often utility was kept and each claim about erasure shown. Seconds compare within one experiment;
they depend on the machine and on what else it computed.
"""


def page(sections: Sequence[str]) -> str:
    """The whole page, from the sections of its experiments."""
    return "\n\n".join([HEAD.strip(), *sections]) + "\n"


def sections_of(text: str, mark: str) -> dict[str, str]:
    """Sections of a Markdown `text` by title, each from its heading on. `mark` begins a heading, such as `"## "`."""
    parts = f"\n{text}".split(f"\n{mark}")[1:]
    return {part.partition("\n")[0]: f"{mark}{part}".strip() for part in parts}


def section(variant: Variant, pooled: Pooled) -> str:
    """Markdown of one experiment: its tables, and its findings in sentences."""
    judged = {name: judge(pooled, name) for name in pooled.blocks if name not in ("original", "retrained")}
    request = pooled.summaries[0]["request"]
    total = request["forget_rows"] + request["retain_rows"]
    rows = f"{request['forget_rows']:,} of {total:,} training rows are forgotten."
    of = f" of {len(variant.seeds)}" if len(variant.seeds) > len(pooled.seeds) else ""
    seeds = f"Training seeds: {', '.join(map(str, pooled.seeds))}{of}."
    parts = [
        f"## {variant.title}",
        f"{rows} {seeds}",
        table(pooled, COLUMNS, judged),
        "\n".join(f"- {line}" for line in meaning(pooled, judged)),
    ]
    if pooled.summaries[0]["shadow"]["kind"] in ("heads", "networks"):
        parts += [
            "### Attacks with many models",
            f"The attacks are valid because {pooled.summaries[0]['shadow']['valid_because']}. U-LiRA and RMIA try to "
            "tell unlearned models from models that never had the rows, row by row; 0.5 is a guess. The row of the "
            "retrained models compares them with each other and shows how equal models look. The 95 % interval over "
            "models is in brackets.",
            table(pooled, MANY_MODELS, {}),
        ]
    return "\n\n".join(parts)


def table(pooled: Pooled, columns: Sequence[Metric], judged: dict[str, PooledVerdict]) -> str:
    """Markdown table with one row per candidate; a candidate without any value is left out."""
    head = ["", *(metric.heading for metric in columns), *(["kept", "shown"] if judged else [])]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for name in pooled.blocks:
        values = [pooled.values(name, metric.path) for metric in columns]
        if not any(values):
            continue
        if len(pooled.seeds) == 1:
            cells = [metric.text(pooled.blocks[name][0]) for metric in columns]
        else:
            cells = [cell(metric.form, value) for metric, value in zip(columns, values, strict=True)]
        if judged:
            cells += verdict_cells(judged[name]) if name in judged else ["", ""]
        label = f"{name} (control)" if name == CONTROL else name
        lines.append("| " + " | ".join([label, *cells]) + " |")
    return "\n".join(lines)


def cell(form: str, values: Sequence[float]) -> str:
    """Mean of the values ± their standard deviation (ddof 1), or the single value, or a dash without values."""
    if not values:
        return "–"
    mean = form.format(np.mean(values))
    return mean if len(values) == 1 else f"{mean} ± {form.format(np.std(values, ddof=1))}"


def meaning(pooled: Pooled, judged: dict[str, PooledVerdict]) -> list[str]:
    """The findings of the table in sentences, generated from its numbers."""
    before, without = np.mean(pooled.values("original", FORGET)), np.mean(pooled.values("retrained", FORGET))
    lines = [
        f"The original is right on {before:.1%} of the forgotten rows, a model that never saw them on {without:.1%}."
    ]
    floor = pooled.values("retrained", KL)
    if floor:
        lines.append(
            f"Two retrained models differ by {np.mean(floor):.2f} nats on them; no method can be expected to come "
            "nearer."
        )
    lines += [*claim_lines(pooled, judged), *_nearness(pooled), *_over_forgetting(pooled)]
    return lines


def verdict_cells(j: PooledVerdict) -> list[str]:
    """Two cells: how often utility was kept, and how often each claim was shown."""
    shown = ", ".join(f"{claim} {count}/{j.runs}" for claim, count in j.shown.items() if count)
    return [f"{j.kept}/{j.runs}", shown or "none"]


def claim_lines(pooled: Pooled, judged: dict[str, PooledVerdict]) -> list[str]:
    """Return the lines that say which methods showed or refuted each claim in every run."""
    lines = []
    for claim in CLAIMS:
        names = [name for name, j in judged.items() if claim in j.always]
        if names:
            clauses = ", ".join(
                _with_cost(pooled, name) if _counts(pooled, name, judged[name]) else name for name in names
            )
            lines.append(f"Shown in every run, {claim}: {clauses}.")
        refuted = [name for name, j in judged.items() if j.refuted[claim] == j.runs]
        if refuted:
            lines.append(f"Refuted in every run, {claim}: {', '.join(refuted)}.")
    return lines or ["No claim about erasure was shown or refuted in every run."]


def _counts(pooled: Pooled, name: str, j: PooledVerdict) -> bool:
    """Whether the speed of a method is worth stating.

    It is if utility was kept in every run and the method is a negative control in none.
    """
    found = [summary["methods"][name] for summary in pooled.summaries if name in summary["methods"]]
    controls = [block["verdict"]["control"] for block in found]
    return j.kept == j.runs and not any(controls)


def _with_cost(pooled: Pooled, name: str) -> str:
    if name == CONTROL:
        return f"{name}, the control, which hides and removes nothing"
    fit, retrain = pooled.values(name, FIT), pooled.values(name, RETRAIN)
    if not fit or not retrain or not min(fit):
        return name
    return f"{name} ({np.mean(retrain) / np.mean(fit):,.0f} times faster than retraining)"


def _nearness(pooled: Pooled) -> list[str]:
    """Which methods have a smaller KL to the retrained models than the control, which removes nothing."""
    control = pooled.values(CONTROL, KL)
    if not control:
        return []
    others = {name: pooled.values(name, KL) for name in pooled.blocks if name not in ("original", "retrained", CONTROL)}
    nearer = sorted((float(np.mean(kl)), name) for name, kl in others.items() if kl and np.mean(kl) < np.mean(control))
    if not nearer:
        return [f"No method comes nearer to the retrained model than the control ({np.mean(control):.2f} nats)."]
    named = ", ".join(f"{name} ({kl:.2f})" for kl, name in nearer)
    return [f"Nearer to the retrained model than the control ({np.mean(control):.2f} nats): {named}."]


def _over_forgetting(pooled: Pooled) -> list[str]:
    """Methods whose forgotten rows are called members at least 10 points less often than with retrained models.

    Such over-forgetting reveals the rows as well.
    """
    target = pooled.values("retrained", MEMBER)
    if not target:
        return []
    low = float(np.mean(target)) - 0.1
    names = [
        name
        for name in pooled.blocks
        if name not in ("original", "retrained") and (v := pooled.values(name, MEMBER)) and np.mean(v) < low
    ]
    if not names:
        return []
    return [
        f"Over-forgetting: an attack calls {np.mean(target):.0%} of the forgotten rows training rows of the retrained "
        f"models, and at least 10 points fewer after {', '.join(names)}; this reveals the rows as well."
    ]
