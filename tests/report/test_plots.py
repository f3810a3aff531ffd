"""Test the numbers that the plots of the report show, against counts made by hand and numpy."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from expunge.report import charts, plots
from expunge.report.evidence import Evidence
from expunge.report.style import looks


def texts(svg: str) -> list[str]:
    return re.findall(r"<text [^>]*>([^<]*)</text>", svg)


def one_hot(predicted: list[int], classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[predicted] * 9


def evidence_of(logits: dict[str, np.ndarray], classes: int = 3) -> Evidence:
    labels, parts = np.array([0, 0, 0, 0, 1, 2, 0]), np.array(["forget"] * 4 + ["retain"] * 2 + ["test_forget"])
    names = tuple(f"class {i}" for i in range(classes))
    return Evidence(names, labels, parts, logits, {}, np.array([]), "")


def test_confusion_counts_forgotten_rows_only():
    e = evidence_of({"original": one_hot([0] * 7, 3), "loft": one_hot([1, 2, 2, 2, 0, 0, 0], 3)})
    (panel,) = plots.confusion_shift(e)
    cells = [t for t in texts(panel.svg) if t.isdigit()]
    # The four cells belong to the true labels, the original, and the two classes that `loft` predicts.
    assert sorted(cells) == ["100", "100", "25", "75"]


def test_many_classes_are_folded_and_nothing_is_lost():
    e = evidence_of({"m": one_hot([50, 51, 52, 53, 0, 0, 0], 60)}, 60)
    (panel,) = plots.confusion_shift(e)
    shown = texts(panel.svg)
    assert "41 others" in shown
    assert shown.count("25") == 4 and "class 53" in shown


def test_histogram_shares_sum_to_one_and_clip_at_the_edges():
    shares = plots.bin_shares(np.array([1e-9, 0.01, 5.0, 100.0]), plots.LOSS_BINS)
    assert np.isclose(shares.sum(), 1.0)
    assert shares[0] == shares[-1] == 0.25


def test_confidence_and_loss_are_those_of_the_softmax():
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
    confidence, losses = plots.confidence_and_loss(logits, np.array([0, 1]))
    np.testing.assert_allclose(confidence, [0.7, 0.8])
    np.testing.assert_allclose(losses, -np.log([0.7, 0.1]))


def test_a_group_without_rows_is_left_out():
    e = evidence_of({"m": one_hot([0] * 7, 3)})
    without = replace(e, parts=np.array(["forget"] * 4 + ["retain"] * 3))
    assert plots.attack_curves(without) == []
    (panel, _) = plots.histograms(without, ["m"])
    assert "forgotten" in texts(panel.svg) and "unseen" not in texts(panel.svg)


def test_views_skip_constant_features_and_draw_every_row():
    groups = np.repeat(["retained", "forgotten"], 20)
    z = np.random.default_rng(0).normal(size=(40, 4))
    e = replace(evidence_of({}), views={"z": z, "nothing": np.ones((40, 4))}, view_groups=groups)
    pca, tsne = plots.views(e)
    assert pca.title == "z, PCA" and tsne.title == "z, t-SNE"
    assert len(re.findall(r"<use [^>]*fill-opacity", pca.svg)) == 40 + 2  # The legend adds two marks.


def test_features_that_a_method_left_where_they_are_are_drawn_once():
    z = np.random.default_rng(0).normal(size=(40, 4))
    views = {"z of the original": z, "z' of exact": z.copy(), "z of the retrained model": z + 1}
    e = replace(evidence_of({}), views=views, view_groups=np.repeat(["retained", "forgotten"], 20))
    assert [panel.title for panel in plots.views(e)] == [
        "z of the original = z' of exact, PCA",
        "z of the original = z' of exact, t-SNE",
        "z of the retrained model, PCA",
        "z of the retrained model, t-SNE",
    ]


def test_pca_shows_the_widest_directions():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 3)) * [10.0, 3.0, 0.1]
    points, explained = plots.principal_components(x)
    centred = x - x.mean(axis=0)
    variance = np.linalg.svd(centred, compute_uv=False) ** 2
    np.testing.assert_allclose(explained, variance / variance.sum(), rtol=1e-6)
    np.testing.assert_allclose(np.abs(points[:, 0]), np.abs(centred @ np.linalg.svd(centred)[2][0]), atol=1e-6)
    assert plots.principal_components(x[:, :1])[0].shape == (200, 2)


def test_damage_is_shown_in_points_with_its_sign(run):
    summary, _ = run()
    (panel,) = charts.damage(summary, [f"class {i}" for i in range(5)])
    shown = texts(panel.svg)
    values = [v for v in summary["methods"]["loft"]["per_class"]["damage"] if v is not None]
    for value in values:
        if abs(value) > 0.001:
            assert f"{100 * value:+.1f}" in shown
    assert "class 2" not in shown  # The forgotten class has no retained test rows.


def test_probe_bars_carry_their_values(run):
    summary, _ = run()
    linear, knn = charts.probes(summary)
    value = summary["methods"]["loft"]["representation"]["probe_z_prime"]
    assert f"{100 * value:.1f}" in texts(linear.svg)
    assert "logit-mask" in texts(knn.svg)


def test_without_a_reference_cost_has_no_plot(run):
    assert charts.cost(run(seeds=0)[0]) == []
    assert charts.relearning(run(seeds=0)[0])


def test_a_roc_curve_of_equal_scores_is_that_of_guessing():
    """It used to run along the floor of the plot, as if the attack found nobody."""
    truth = np.repeat([1, 0], 50)
    rates, reached = plots.roc_points(truth, np.zeros(100), 0.01)
    np.testing.assert_allclose(reached, rates)
    rng = np.random.default_rng(0)
    score = rng.normal(size=100) + truth
    rates, reached = plots.roc_points(truth, score, 0.01)
    for at in (0.02, 0.2, 0.5):  # Without equal scores it is the share of members above the threshold.
        threshold = np.sort(score[truth == 0])[::-1][round(50 * at)]
        np.testing.assert_allclose(np.interp(at, rates, reached), (score[truth == 1] > threshold).mean())


def test_references_look_the_same_in_every_report():
    a, b = looks(["original", "retrained", "logit-mask", "x"]), looks(["original", "logit-mask", "y", "z", "x"])
    assert all(a[name] == b[name] for name in ("original", "logit-mask"))
    many = looks([f"m{i}" for i in range(12)])
    assert len({(look.color, look.line) for look in many.values()}) == 12
