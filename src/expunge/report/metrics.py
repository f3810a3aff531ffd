"""Every metric that a page or table shows: its path in the summary, its name, its format and a good value.

Tables choose metrics from here by path. Labels and formats are defined only here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from expunge.evaluation.gates import MAX_STAGES, stage_path

P_VALUE = "{:.2g}"
PERCENT, PERCENT_2, NUMBER_1, NUMBER_2, NUMBER_3, WHOLE = "{:.1%}", "{:.2%}", "{:.1f}", "{:.2f}", "{:.3f}", "{:,.0f}"
RETRAINED = "retrained"


@dataclass(frozen=True)
class Metric:
    """A metric of the reports.

    `path`: dotted path in a block of the summary. `name`: in words, with its unit. `form`: format of a value. `target`:
    a good value, or the model whose value is good. `short`: heading of a narrow column; `help`: its tooltip.
    """

    path: str
    name: str
    form: str
    target: str = RETRAINED
    short: str = ""
    help: str = ""

    @property
    def heading(self) -> str:
        """The heading of its column."""
        return self.short or self.name

    def value(self, block: Mapping[str, Any] | None) -> Any:
        """Return the value in a block of the summary, None if it does not exist."""
        return lookup(block, self.path)

    def text(self, block: Mapping[str, Any] | None) -> str:
        """Return the value as a table shows it, with its interval if the block has one; a dash if there is no value."""
        value = self.value(block)
        return "–" if value is None else self.form.format(value) + self.interval_text(block)

    def interval_text(self, block: Mapping[str, Any] | None) -> str:
        """Return ` (low to high)` if the block has `PATH_low` and `PATH_high`, else an empty string."""
        low, high = (lookup(block, f"{self.path}_{end}") for end in ("low", "high"))
        return "" if low is None or high is None else f" ({self.form.format(low)} to {self.form.format(high)})"


def lookup(block: Mapping[str, Any] | None, path: str) -> Any:
    """Return the value at a dotted path, None if a key is missing."""
    value: Any = block
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


_ALL = (
    Metric(
        "accuracy.retain",
        "accuracy on retained rows",
        PERCENT,
        short="retain",
        help="accuracy on the training rows that stay",
    ),
    Metric(
        "accuracy.forget",
        "accuracy on forgotten rows",
        PERCENT,
        short="forget",
        help="accuracy on the training rows to be forgotten",
    ),
    Metric(
        "accuracy.test_retain",
        "accuracy on retained test rows",
        PERCENT,
        short="test ret.",
        help="accuracy on test rows of classes that stay",
    ),
    Metric(
        "accuracy.test_forget",
        "accuracy on forgotten test rows",
        PERCENT,
        short="test forg.",
        help="accuracy on test rows of classes that go",
    ),
    Metric(
        "divergence.forget.kl",
        "KL from the retrained model on forgotten rows, nats",
        NUMBER_2,
        "0",
        short="KL",
        help="KL divergence from the retrained model on forgotten rows, in nats; 0 is equal",
    ),
    Metric(
        "divergence.forget.agreement",
        "agreement with the retrained model on forgotten rows",
        PERCENT,
        "100 %",
        short="agree",
        help="forgotten rows on which method and retrained model predict the same class",
    ),
    Metric(
        "divergence.forget.kl_others",
        "the same KL with the forgotten classes hidden in both models, nats",
        NUMBER_2,
        "0",
    ),
    Metric(
        "divergence.forget.agreement_others",
        "the same agreement with the forgotten classes hidden in both models",
        PERCENT,
        "100 %",
    ),
    Metric("divergence.forget.js", "JS on forgotten rows, nats", NUMBER_3, "0"),
    Metric("divergence.forget.activation_distance", "activation distance on forgotten rows", NUMBER_3, "0"),
    Metric("divergence.forget.zrf_uniform", "ZRF against uniform output", NUMBER_3),
    Metric("divergence.test.kl", "KL on test rows, nats", NUMBER_3, "0"),
    Metric("divergence.test.agreement", "agreement on test rows", PERCENT, "100 %"),
    Metric("gap.tow", "tug of war", NUMBER_3, "1"),
    Metric("gap.mean", "mean accuracy gap", NUMBER_3, "0"),
    Metric("membership.margin_excess", "memorisation left, row by row, along the original's", NUMBER_3, "0"),
    Metric(
        "membership.loss_auc",
        "AUC of the loss attack",
        NUMBER_3,
        short="loss AUC",
        help="attack that tells forgotten from unseen rows by their loss; near the retrained model's value is good",
    ),
    Metric(
        "membership.mia_lr_member",
        "share of forgotten rows called members (MIA-LR)",
        PERCENT,
        short="MIA",
        help="forgotten rows that an attack on entropies calls training rows; near the retrained model's value is good",
    ),
    Metric("membership.tpr_at_fpr_1pct", "TPR of the loss attack at 1 % FPR", PERCENT),
    Metric("membership.tpr_at_fpr_01pct", "TPR of the loss attack at 0.1 % FPR", PERCENT),
    Metric("membership.mia_svc.confidence", "MIA-SVC on confidence", PERCENT),
    Metric("membership.mia_svc.correctness", "MIA-SVC on correctness", PERCENT),
    Metric("membership.mia_svc.entropy", "MIA-SVC on entropy", PERCENT),
    Metric("membership.mia_svc.modified_entropy", "MIA-SVC on modified entropy", PERCENT),
    Metric("membership.mia_svc.prob", "MIA-SVC on probabilities", PERCENT),
    Metric("membership.rmia_auc", "RMIA, AUC", NUMBER_3, "0.5"),
    Metric("membership.cmia", "class-wise attack: told from a retrained model by the other classes, AUC", NUMBER_3),
    Metric("membership.canary_auc", "planted canaries told from those that were not planted, AUC", NUMBER_3, "0.5"),
    Metric("canaries.exposure", "mean exposure of planted canaries, bits; 1.44 if never seen", NUMBER_2),
    Metric("canaries.p_remembered", "chance that a model that never saw them knows them so well", P_VALUE, "above 5 %"),
    Metric("canaries.p_overshot", "chance that a model that never saw them knows them so badly", P_VALUE, "above 5 %"),
    Metric(
        "membership.class_geometry",
        "class geometry attack: the class recognised by the other classes' probabilities",
        PERCENT,
    ),
    Metric("membership.retain_loss_auc", "loss AUC of retained rows", NUMBER_3, "original"),
    Metric(
        "representation.probe_z_prime",
        "linear probe on z'",
        PERCENT,
        short="probe z'",
        help="a fresh linear probe that looks for the forgotten rows in what the head reads; 50 % is a guess",
    ),
    Metric("representation.probe_z", "linear probe on z", PERCENT),
    *(Metric(stage_path(i), f"linear probe inside the backbone, stage {i}", PERCENT) for i in range(1, MAX_STAGES + 1)),
    Metric("representation.knn_z_prime", "nearest neighbours in z'", PERCENT),
    Metric("representation.knn_z", "nearest neighbours in z", PERCENT),
    Metric("representation.alignment_z_prime", "share of z' of forgotten rows along retained directions", PERCENT),
    Metric("representation.alignment_z", "share of z of forgotten rows along retained directions", PERCENT),
    Metric("representation.cka.original", "CKA with the original", NUMBER_3),
    Metric("representation.cka.retrained", "CKA with the retrained model", NUMBER_3, "1"),
    Metric("calibration.ece_test_retain", "calibration error on retained test rows", NUMBER_3, "0"),
    Metric("relearn.area", "share of 100 steps of learning again at which forgotten rows are known", PERCENT),
    Metric("relearn.steps", "steps to relearn", WHOLE),
    Metric("relearn.prototype_samples", "samples per class to relearn by prototypes", WHOLE),
    Metric(
        "cost.fit_s",
        "seconds to fit",
        "{:.3g} s",
        "low",
        short="fit",
        help="seconds to fit the method, without evaluation",
    ),
    Metric("cost.speedup_vs_retrain", "times faster than retraining", WHOLE, "high"),
    Metric("cost.peak_rss_mb", "peak memory of the fit, MB", WHOLE, "low"),
    Metric("cost.evaluate_s", "seconds to evaluate", NUMBER_1, "low"),
    # Attacks with shadow models; present only if the stage `shadow` ran them.
    Metric("shadow.ulira.auc", "U-LiRA, AUC", NUMBER_3, "0.5", short="U-LiRA AUC"),
    Metric("shadow.ulira.tpr_at_fpr_1pct", "U-LiRA, TPR at 1 % FPR", PERCENT, "1 %", short="TPR at 1 % FPR"),
    Metric("shadow.ulira.tpr_at_fpr_01pct", "U-LiRA, TPR at 0.1 % FPR", PERCENT_2, "0.1 %", short="TPR at 0.1 % FPR"),
    Metric("shadow.rmia.auc", "RMIA over shadow models, AUC", NUMBER_3, "0.5", short="RMIA AUC"),
    Metric("shadow.rmia.tpr_at_fpr_1pct", "RMIA over shadow models, TPR at 1 % FPR", PERCENT, "1 %"),
    Metric("shadow.klom.p50", "KLoM, median row", NUMBER_2, short="KLoM median"),
    Metric("shadow.klom.p95", "KLoM, 95th percentile", NUMBER_2, short="KLoM 95 %"),
    Metric("shadow.klom.p99", "KLoM, 99th percentile", NUMBER_2),
    Metric(
        "shadow.forgetting_score",
        "forgetting score (NeurIPS 2023)",
        NUMBER_3,
        "retrained, at most 1",
        short="forgetting score",
    ),
)
METRICS = {metric.path: metric for metric in _ALL}


def some(*paths: str) -> tuple[Metric, ...]:
    """Return the metrics at these paths, in this order."""
    return tuple(METRICS[path] for path in paths)


def of_packages(summary: Mapping[str, Any]) -> tuple[Metric, ...]:
    """Return the metrics of other packages that the summary contains."""
    return tuple(
        Metric(
            f"plugins.{name}",
            m["name"],
            m["form"],
            m["target"],
            short=name,
            help=f"{m['name']}; a good value is near: {m['target']}; measured by {m['package']}",
        )
        for name, m in summary.get("metrics", {}).items()
    )


def measured(metrics: Iterable[Metric], blocks: Collection[Mapping[str, Any]]) -> list[Metric]:
    """Return those of `metrics` that at least one of `blocks` has."""
    return [metric for metric in metrics if any(metric.value(block) is not None for block in blocks)]


def name_of(path: str) -> str:
    """Return the name of a metric in words, or its path if it is not registered."""
    return METRICS[path].name if path in METRICS else path
