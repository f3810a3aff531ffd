"""All metrics of one model, compared with the original and the retrained models: the block that a report shows.

Large sets are thinned for metrics that would take long on all rows, to the sizes of the constants here and in
`measuring`. The choice is seeded. Rows are first sorted by their content, so the order of the input changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation import accuracy as acc
from expunge.evaluation import divergence as div
from expunge.evaluation import membership as mia
from expunge.evaluation import representation as rep
from expunge.evaluation.equivalence import Difference, auc_difference, row_difference
from expunge.evaluation.exposure import CanaryRows, canary_block
from expunge.evaluation.gates import CANARY, GEOMETRY, RELEARN
from expunge.evaluation.judging import judge, judge_controls
from expunge.evaluation.measuring import RELEARN_ROWS, Measured, Measuring, Outputs, area, relearned
from expunge.evaluation.rows import Index, Rows, choose_rows

CKA_ROWS = 4000
RELEARN_SHARE = 0.95  # share of the original's accuracy on forgotten rows that counts as relearned
NO_RELEARNING: dict[str, Any] = {
    "target_accuracy": None,
    "steps": None,
    "area": None,
    "curve": [],
    "prototype_samples": None,
}


def evaluate(
    candidate: Outputs,
    original: Outputs,
    retrained: Sequence[Outputs],
    labels: NDArray[Any],
    part: NDArray[Any],
    seed: int = 0,
    half: int | None = None,
    canaries: CanaryRows | None = None,
    other_fits: Sequence[Outputs] = (),
    measuring: Measuring | None = None,
) -> dict[str, Any]:
    """Compute the metrics block of one model.

    Every value is a JSON scalar, list or dict, or None where there is nothing to measure. `labels (n,)` int and `part
    (n,)` str describe the rows of all outputs. `retrained` may be empty; values that compare with it are then None. For
    a retrained model's own block pass the other retrained models; its divergences are then the noise floor.

    In the block, `intervals` holds 90 % bootstrap intervals of the values with gates, without the row noise that
    candidate and retrained models share. `judged` holds what the claims rest on, see `judging.judge`.

    `half`: 0 or 1 judges on that half of the rows, as needed if a method is chosen from several; None judges on all
    rows. `canaries`: their positions among these rows, if any were planted. `other_fits`: the same method under other
    fit seeds, whose spread enters the intervals of `judged`. `measuring`: measurements on the rows that `choose_rows`
    returns for these arguments; models that it knows are not measured again. Raises ValueError for outputs with another
    number of rows than the labels.
    """
    for name, model in [("candidate", candidate), ("original", original), *(("retrained", r) for r in retrained)]:
        if len(model.logits) != len(labels) or len(model.z) != len(labels) or len(model.head_input) != len(labels):
            raise ValueError(f"the {name} model's outputs must have {len(labels)} rows, like the labels")
    measuring = measuring or Measuring(choose_rows(labels, part, original.z, seed, canaries))
    rows = measuring.rows
    mine, theirs = measuring.of(candidate), [measuring.of(r) for r in retrained]
    divergence, divergence_rows = _divergence(candidate, retrained, rows)
    others = [(np.asarray(r.logits), {**t.rows, **t.knn}) for r, t in zip(retrained, theirs, strict=True)]
    base = mine if candidate is original else measuring.of(original)
    first = np.asarray(original.logits), {**base.rows, **base.knn}
    fits = [(np.asarray(o.logits), {**m.rows, **m.knn}) for o in other_fits for m in [measuring.of(o)]]
    return {
        "accuracy": {name: mine.value(f"accuracy.{name}") for name in acc.PARTS},
        "gap": _gap(mine, theirs, rows),
        "divergence": divergence,
        "membership": _membership(candidate, retrained, rows, mine),
        "representation": _representation(candidate, original, retrained, rows, mine),
        "relearn": _relearn(candidate, original, rows, mine),
        "calibration": {"ece_test_retain": _on(acc.ece, candidate, rows.parts["test_retain"], rows.labels)},
        "per_class": _per_class(candidate, original, rows),
        "canaries": canary_block(np.asarray(candidate.logits), rows.canaries),
        "intervals": _intervals((candidate, mine), list(zip(retrained, theirs, strict=True)), divergence_rows, rows),
        "judged": judge((np.asarray(candidate.logits), {**mine.rows, **mine.knn}), first, others, rows, half, fits),
    }


def controls_of(
    original: Outputs,
    retrained: Sequence[Outputs],
    labels: NDArray[Any],
    part: NDArray[Any],
    seed: int = 0,
    half: int | None = None,
    canaries: CanaryRows | None = None,
    measuring: Measuring | None = None,
) -> dict[str, list[dict[str, Any]]]:
    """Judge the negative controls, made from the original's logits: blocks as `judge_gates` by the control's name."""
    measuring = measuring or Measuring(choose_rows(labels, part, original.z, seed, canaries))
    rows = measuring.rows
    base = measuring.of(original)
    others = [(np.asarray(r.logits), {**t.rows, **t.knn}) for r in retrained for t in [measuring.of(r)]]
    first = np.asarray(original.logits), {**base.rows, **base.knn}
    return judge_controls(
        first, others, rows, half, lambda logits: {RELEARN: area(relearned(logits, original.head_input, rows))}
    )


def _on(metric: Callable[..., Any], model: Outputs, index: Index, labels: NDArray[Any]) -> Any:
    return metric(np.asarray(model.logits)[index], labels[index])


def _whole_test(m: Measured, rows: Rows) -> dict[str, float | None]:
    """Accuracies on retained, forgotten and all test rows, the keys of the tug of war."""
    test = [m.rows[f"accuracy.{name}"] for name in ("test_retain", "test_forget")]
    pooled = np.concatenate([t for t in test if t is not None])
    return {"retain": m.value("accuracy.retain"), "forget": m.value("accuracy.forget"), "test": div.mean(pooled)}


def _gap(mine: Measured, theirs: list[Measured], rows: Rows) -> dict[str, float | None]:
    pairs = [(_whole_test(mine, rows), _whole_test(t, rows)) for t in theirs]
    gaps = [g for a, b in pairs if (g := acc.mean_gap(a, b)) is not None]
    tows = [t for a, b in pairs if (t := acc.tow(a, b)) is not None]
    return {"mean": div.mean(np.array(gaps)), "tow": div.mean(np.array(tows))}


def _divergence(
    candidate: Outputs, retrained: Sequence[Outputs], rows: Rows
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Divergences as means over rows and retraining seeds, and per forgotten row as means over seeds for intervals."""
    block: dict[str, Any] = {}
    for name, index in (("forget", rows.forget), ("test", rows.test)):
        each = [div.summary(np.asarray(r.logits)[index], np.asarray(candidate.logits)[index]) for r in retrained]
        keys = ("kl", "js", "agreement", "activation_distance")
        block[name] = {k: div.mean(np.array([e[k] for e in each if e[k] is not None])) for k in keys}
    block["forget"]["zrf_uniform"] = div.zrf(np.asarray(candidate.logits)[rows.forget])
    if not retrained or not len(rows.forget):
        return block, {}
    pairs = [(np.asarray(r.logits)[rows.forget], np.asarray(candidate.logits)[rows.forget]) for r in retrained]
    return block, {
        "divergence.forget.kl": np.mean([div.kl_rows(p, q) for p, q in pairs], axis=0),
        "divergence.forget.agreement": np.mean([div.agreement_rows(p, q) for p, q in pairs], axis=0),
    }


def _membership(candidate: Outputs, retrained: Sequence[Outputs], rows: Rows, mine: Measured) -> dict[str, Any]:
    logits, y = np.asarray(candidate.logits), rows.labels
    retain, test_retain = rows.parts["retain"], rows.parts["test_retain"]
    members, others = _scores(candidate, rows)
    return {
        "loss_auc": mia.auc(members, others),
        "tpr_at_fpr_1pct": mia.tpr_at_fpr(members, others, 0.01),
        "tpr_at_fpr_01pct": mia.tpr_at_fpr(members, others, 0.001),
        "mia_lr_member": mine.value("membership.mia_lr_member"),
        "mia_svc": mia.mia_svc(
            (logits[retain], y[retain]),
            (logits[rows.test], y[rows.test]),
            (logits[rows.forget], y[rows.forget]),
            rows.rng(5),
        ),
        "rmia_auc": _rmia(candidate, retrained, rows),
        "canary_auc": mine.value(CANARY),
        "class_geometry": mine.value(GEOMETRY),
        "retain_loss_auc": mia.loss_auc(logits[retain], y[retain], logits[test_retain], y[test_retain]),
    }


def _rmia(candidate: Outputs, retrained: Sequence[Outputs], rows: Rows) -> float | None:
    """AUC of RMIA, forgotten against unseen rows, with the retrained models as references and test rows as population.

    None without retrained models or without rows on any side.
    """
    if not retrained or not len(rows.forget) or not len(rows.population_unseen) or not len(rows.population):
        return None

    def p(model: Outputs, index: Index) -> NDArray[Any]:
        return np.asarray(np.exp(-mia.loss(np.asarray(model.logits)[index], rows.labels[index])))

    population = p(candidate, rows.population), np.stack([p(r, rows.population) for r in retrained])
    scores = [
        mia.rmia_scores(p(candidate, index), np.stack([p(r, index) for r in retrained]), *population)
        for index in (rows.forget, rows.population_unseen)
    ]
    return mia.auc(*scores)


def _representation(
    candidate: Outputs, original: Outputs, retrained: Sequence[Outputs], rows: Rows, mine: Measured
) -> dict[str, Any]:
    index = rows.thin(np.concatenate([rows.forget, rows.test]), CKA_ROWS, 6)
    seen = np.asarray(candidate.head_input)[index]
    with_retrained = [c for r in retrained if (c := rep.linear_cka(seen, np.asarray(r.z)[index])) is not None]
    knn_z, knn_prime = mine.knn["representation.knn_z"], mine.knn["representation.knn_z_prime"]
    return {
        "target": "forgotten class" if rows.whole_classes else "forgotten or never seen",
        "probe_z": mine.value("representation.probe_z"),
        "probe_z_prime": mine.value("representation.probe_z_prime"),
        "stages": {path.rpartition(".")[2]: mine.value(path) for path in candidate.stages},
        "alignment_z": mine.value("representation.alignment_z"),
        "alignment_z_prime": mine.value("representation.alignment_z_prime"),
        "knn_z": None if knn_z is None else div.mean(knn_z),
        "knn_z_prime": None if knn_prime is None else div.mean(knn_prime),
        "cka": {
            "original": rep.linear_cka(seen, np.asarray(original.z)[index]),
            "retrained": div.mean(np.array(with_retrained)),
        },
    }


def _relearn(candidate: Outputs, original: Outputs, rows: Rows, mine: Measured) -> dict[str, Any]:
    """The relearning curve and its area, and the steps and prototype samples until the target accuracy is reached.

    The target is RELEARN_SHARE of the original's accuracy on forgotten rows.
    """
    index = rows.thin(rows.forget, RELEARN_ROWS, 7)
    before = _on(acc.accuracy, original, index, rows.labels)
    if before is None or mine.relearned is None:
        return NO_RELEARNING
    target = RELEARN_SHARE * before
    z = np.asarray(candidate.head_input)
    curve = [float(share) for share in mine.relearned.mean(axis=1)]
    samples = None
    if rows.whole_classes and len(rows.parts["test_forget"]):
        sets = [(z[i], rows.labels[i]) for i in (rows.parts["retain"], rows.forget, rows.parts["test_forget"])]
        samples = rep.prototype_samples(sets[0], sets[1], sets[2], target, rows.rng(8))
    return {
        "target_accuracy": target,
        "steps": rep.steps_to(curve, target),
        "area": mine.value(RELEARN),
        "curve": curve,
        "prototype_samples": samples,
    }


def _per_class(candidate: Outputs, original: Outputs, rows: Rows) -> dict[str, Any]:
    """Recall of every class on retained test rows, its loss against the original, and the class that lost most."""
    index = rows.parts["test_retain"]
    logits, before = np.asarray(candidate.logits)[index], np.asarray(original.logits)[index]
    damage, worst = acc.class_damage(logits, before, rows.labels[index])
    return {"accuracy": acc.per_class(logits, rows.labels[index]), "damage": damage, "worst_class": worst}


def _scores(model: Outputs, rows: Rows) -> tuple[NDArray[Any], NDArray[Any]]:
    """Membership scores of forgotten and of unseen rows: the negated loss, larger where the model fits a row better."""
    forget, unseen = (
        -mia.loss(np.asarray(model.logits)[index], rows.labels[index]) for index in (rows.forget, rows.unseen)
    )
    return forget, unseen


def _intervals(
    candidate: tuple[Outputs, Measured],
    references: list[tuple[Outputs, Measured]],
    divergences: dict[str, NDArray[Any]],
    rows: Rows,
) -> dict[str, list[float]]:
    """[low, high] by gate: the retrained models' mean plus the interval of the paired difference to it."""
    found: dict[str, tuple[float, Difference | None]] = {}
    for path, values in candidate[1].rows.items():
        others = [o for _, t in references if (o := t.rows.get(path)) is not None]
        if values is not None and others and len(values):
            reference = np.mean(others, axis=0)
            found[path] = float(reference.mean()), row_difference(values - reference, rows.rng(9))
    for path, values in divergences.items():
        found[path] = 0.0, row_difference(values, rows.rng(9))
    sides = [_scores(model, rows) for model, _ in references]
    paired = auc_difference(_scores(candidate[0], rows), sides, rows.rng(10))
    reference_auc = div.mean(np.array([v for s in sides if (v := mia.auc(*s)) is not None]))
    if reference_auc is not None:
        found["membership.loss_auc"] = reference_auc, paired
    return {path: [base + d.low, base + d.high] for path, (base, d) in sorted(found.items()) if d is not None}
