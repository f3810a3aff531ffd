"""Membership inference from one model's outputs: attacks that decide whether the forgotten rows were trained on.

Scores are oriented so that higher means "member". The target of every value is the retrained model's value.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from expunge.evaluation.divergence import Floats, log_softmax
from expunge.evaluation.threads import beside

SVC_FEATURES = ("correctness", "confidence", "entropy", "modified_entropy", "prob")


def _scores(values: NDArray[Any], name: str) -> NDArray[Any]:
    x = np.asarray(values)
    if x.ndim != 1 or np.isnan(x).any():
        raise ValueError(f"{name} scores must be one-dimensional and free of NaN, got shape {x.shape}")
    return x


def auc(members: NDArray[Any], others: NDArray[Any]) -> float | None:
    """P(member score > other score) + P(equal) / 2, the area under the ROC curve, in [0, 1]; None if either is empty.

    At 0.5 the scores do not distinguish the two sides. Below 0.5 members score lower than non-members, which reveals
    membership as well.
    """
    return sorted_auc(np.sort(_scores(members, "member")), np.sort(_scores(others, "non-member")))


def sorted_auc(a: NDArray[Any], b: NDArray[Any]) -> float | None:
    """`auc` of scores that are sorted already."""
    if not len(a) or not len(b):
        return None
    below = np.searchsorted(b, a, side="left").sum(dtype=np.int64)
    not_above = np.searchsorted(b, a, side="right").sum(dtype=np.int64)
    return float((below + not_above) / (2.0 * len(a) * len(b)))


def placements(members: NDArray[Any], others: NDArray[Any]) -> Floats:
    """Share of `others` that each member's score exceeds, `(n,)`; ties count half.

    The mean is the AUC (DeLong 1988).
    """
    b = np.sort(np.asarray(others, np.float64))
    a = np.asarray(members, np.float64)
    return np.asarray((np.searchsorted(b, a, side="left") + np.searchsorted(b, a, side="right")) / (2.0 * len(b)))


def tpr_at_fpr(members: NDArray[Any], others: NDArray[Any], fpr: float) -> float | None:
    """Largest true-positive rate of a threshold whose false-positive rate is at most `fpr`; None if either is empty.

    There is no interpolation: with fewer than 1/fpr others only a threshold without false positives is allowed.
    Range [0, 1]; guessing reaches `fpr`.
    """
    return sorted_tpr(np.sort(_scores(members, "member")), np.sort(_scores(others, "non-member")), fpr)


def sorted_tpr(a: NDArray[Any], b: NDArray[Any], fpr: float) -> float | None:
    """`tpr_at_fpr` of scores that are sorted already."""
    if not len(a) or not len(b):
        return None
    allowed = int(np.floor(fpr * len(b) + 1e-9))  # the tolerance offsets rounding of the product
    if allowed >= len(b):
        return 1.0
    return float(1.0 - np.searchsorted(a, b[len(b) - 1 - allowed], side="right") / len(a))


def loss(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Cross-entropy -log p_y per row `(n,)`, nats, at most 27.6 (the probability floor)."""
    log_p = log_softmax(logits)
    return np.asarray(-log_p[np.arange(len(log_p)), np.asarray(labels)])


def loss_auc(
    forget_logits: NDArray[Any], forget_labels: NDArray[Any], unseen_logits: NDArray[Any], unseen_labels: NDArray[Any]
) -> float | None:
    """AUC of -loss, forgotten rows against unseen rows of the same classes; above 0.5 the model still fits them better.

    Range [0, 1], target the retrained model's value (near 0.5). Below 0.5 is over-forgetting.
    """
    return auc(-loss(forget_logits, forget_labels), -loss(unseen_logits, unseen_labels))


def entropy(logits: NDArray[Any]) -> Floats:
    """Entropy of the prediction, -sum_c p_c log p_c per row `(n,)`, nats, in [0, log C]."""
    log_p = log_softmax(logits)
    return np.asarray(-(np.exp(log_p) * log_p).sum(axis=1))


def modified_entropy(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """-(1 - p_y) log p_y - sum_{c != y} p_c log(1 - p_c) per row `(n,)`, nats; Song and Mittal (2021).

    0 for a confident right prediction, largest for a confident wrong one.
    """
    log_p = log_softmax(logits)
    p, rows, y = np.exp(log_p), np.arange(len(log_p)), np.asarray(labels)
    terms = p * np.log(np.maximum(1.0 - p, 1e-12))
    terms[rows, y] = (1.0 - p[rows, y]) * log_p[rows, y]
    return np.asarray(-terms.sum(axis=1))


def mia_lr_rows(retain: NDArray[Any], test: NDArray[Any], forget: NDArray[Any]) -> Floats | None:
    """MIA-LR per forgotten row: 1.0 for a member, 0.0 for a non-member, 0.5 on the decision boundary.

    Input: logits of the three sets. A logistic regression with balanced class weights (scikit-learn, C = 1) on the
    softmax entropy learns retained = 1 against test = 0. `test` must hold all test rows, including those of forgotten
    classes. None if a set is empty.
    """
    from sklearn.linear_model import LogisticRegression

    if not len(retain) or not len(test) or not len(forget):
        return None
    x = np.concatenate([entropy(retain), entropy(test)])
    y = np.concatenate([np.ones(len(retain)), np.zeros(len(test))])
    model = LogisticRegression(class_weight="balanced").fit(x[:, None], y)
    decision = model.decision_function(entropy(forget)[:, None])
    return np.where(np.abs(decision) < 1e-9, 0.5, (decision > 0).astype(np.float64))


def svc_feature(name: str, logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """One of SVC_FEATURES as a matrix `(n, 1)`, or `(n, C)` for `prob`, the whole probability vector.

    Raises ValueError for another name.
    """
    if name == "prob":
        return np.exp(log_softmax(logits))
    if name == "correctness":
        column = (np.argmax(logits, axis=1) == np.asarray(labels)).astype(np.float64)
    elif name == "confidence":
        column = np.exp(-loss(logits, labels))
    elif name == "entropy":
        column = entropy(logits)
    elif name == "modified_entropy":
        column = modified_entropy(logits, labels)
    else:
        raise ValueError(f"unknown feature {name!r}, expected one of {', '.join(SVC_FEATURES)}")
    return np.asarray(column[:, None])


def mia_svc(
    retain: tuple[NDArray[Any], NDArray[Any]],
    test: tuple[NDArray[Any], NDArray[Any]],
    forget: tuple[NDArray[Any], NDArray[Any]],
    rng: np.random.Generator,
    rows: int = 1000,
) -> dict[str, float | None]:
    """MIA-SVC: per feature, the share of forgotten rows called members, in [0, 1]. Target: the retrained model's share.

    Each set is `(logits (n, C), labels (n,))`. SVC(C=3, rbf, gamma="auto") learns retained = 1 against test = 0 on at
    most `rows` rows of each set, drawn by `rng`, and is applied to at most `rows` forgotten rows, because an SVC on all
    rows takes minutes. A feature that is constant over the learning rows gives 0.5. If a set is empty, all are None.
    """
    from sklearn.svm import SVC

    n = min(len(retain[1]), len(test[1]), rows)
    if n == 0 or not len(forget[1]):
        return dict.fromkeys(SVC_FEATURES)
    picked = []
    for (logits, labels), size in ((retain, n), (test, n), (forget, min(len(forget[1]), rows))):
        index = np.sort(rng.choice(len(labels), size, replace=False))
        picked.append((np.asarray(logits)[index], np.asarray(labels)[index]))

    def share(name: str) -> float:
        a, b, f = (svc_feature(name, logits, labels) for logits, labels in picked)
        x = np.concatenate([a, b])
        if np.ptp(x, axis=0).max() == 0.0:
            return 0.5
        model = SVC(C=3, kernel="rbf", gamma="auto").fit(x, np.repeat([1, 0], n))
        return float(np.mean(model.predict(f) == 1))

    return dict(zip(SVC_FEATURES, beside(share, SVC_FEATURES), strict=True))


def rmia_scores(
    target: NDArray[Any],
    references: NDArray[Any],
    population_target: NDArray[Any],
    population_references: NDArray[Any],
    gamma: float = 1.0,
) -> Floats:
    """RMIA per row: the share of population z with (p(x)/pbar(x)) / (p(z)/pbar(z)) > gamma, in [0, 1]; ties count half.

    Input: true-class probabilities `target (n,)`, `references (m, n)`, `population_target (k,)` and
    `population_references (m, k)`. pbar is the mean over the m reference models. None of these may have seen the scored
    rows (offline form), or half of them must have (online form). Source: Zarifzadeh et al. (2024), eq. 4 without the
    offline correction, which is monotone in pbar and needs a held-out constant. Because ties count half, a model equal
    to its reference scores 0.5. Raises ValueError for shapes that do not fit, and without references or population.
    """
    if np.shape(references)[1:] != np.shape(target) or np.shape(population_references)[1:] != np.shape(
        population_target
    ):
        raise ValueError("references must be (models, rows) with the rows of the target")
    if not len(references) or not len(population_target):
        raise ValueError("RMIA needs at least one reference model and one population row")
    tiny = 1e-12  # avoids a division by zero
    ratio = np.asarray(target, np.float64) / np.maximum(np.mean(references, axis=0, dtype=np.float64), tiny)
    other = np.asarray(population_target, np.float64) / np.maximum(
        np.mean(population_references, axis=0, dtype=np.float64), tiny
    )
    other = np.sort(other * gamma)
    order = np.argsort(ratio)  # a search in order is several times as fast
    ranked, share = ratio[order], np.empty(len(ratio))
    share[order] = np.searchsorted(other, ranked, side="left") + np.searchsorted(other, ranked, side="right")
    return share / (2.0 * len(other))


def class_geometry_rows(
    logits: NDArray[Any], forgotten: NDArray[Any], classes: NDArray[Any], rng: np.random.Generator
) -> Floats | None:
    """Whether rows are recognised as belonging to forgotten classes from the probabilities of the other classes alone.

    `forgotten (n,)` bool marks the rows of forgotten classes, and `classes` are their indices. Their columns are
    dropped and the others renormalised. A balanced logistic regression on these log-probabilities learns on a random
    half of the rows and is scored on the other half, with equally many rows of both sides. Returns 1.0 for a correct
    row and 0.0 otherwise: first the rows of forgotten classes, then as many others. The mean is the balanced accuracy
    in [0, 1]; guessing gives 0.5. The target is the retrained model's value, which is well above 0.5, because a class
    that was never seen has neighbours too. None with fewer than two remaining classes or fewer than 8 rows on either
    side. Derived from the nearest-neighbour attack on class unlearning (Ebrahimpour-Boroojeny et al., 2025).
    """
    from sklearn.linear_model import LogisticRegression

    target = np.asarray(forgotten, dtype=bool)
    keep = np.setdiff1d(np.arange(np.shape(logits)[1]), np.asarray(classes))
    if len(keep) < 2 or min(target.sum(), (~target).sum()) < 8:
        return None
    x = log_softmax(np.asarray(logits)[:, keep])
    sides = [rng.permutation(np.flatnonzero(side)) for side in (target, ~target)]
    learn = np.zeros(len(x), dtype=bool)
    learn[np.concatenate([side[: len(side) // 2] for side in sides])] = True
    centre, scale = x[learn].mean(axis=0), x[learn].std(axis=0)
    x = (x - centre) / np.where(scale > 0, scale, 1.0)
    model = LogisticRegression(class_weight="balanced", max_iter=500).fit(x[learn], target[learn])
    test = [side[len(side) // 2 :] for side in sides]
    count = min(len(side) for side in test)
    scored = np.concatenate([np.sort(side[:count]) for side in test])
    return np.asarray(model.predict(x[scored]) == target[scored], dtype=np.float64)
