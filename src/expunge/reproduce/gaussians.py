"""The toy of Representation Unlearning (arXiv 2601.21564): six Gaussians in the plane, one of them forgotten.

`python -m expunge.reproduce.gaussians` draws the features before and after, with and without retained data, and prints
what the frozen head says to them. The paper's positions, spread and widths are not known here; those below are ours.
"""

from __future__ import annotations

import argparse
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from expunge.core.head import LinearHead
from expunge.core.head_refit import HeadRefit
from expunge.core.maps import FeatureMap
from expunge.core.moments import Moments
from expunge.core.representation import RepresentationLinear
from expunge.core.representation_mlp import RepresentationMlp
from expunge.core.zero_shot import RepresentationZeroShotMlp
from expunge.system.files import write_bytes
from expunge.system.progress import log_message

CLASSES, FORGOTTEN = 6, 0
RADIUS, SPREAD, ROWS = 4.0, 0.45, 300
HIDDEN, STEPS, BETA = (64, 64), 2000, 1.0
L2 = 1e-3
PICTURE = Path("docs/images/gaussians.png")


@dataclass(frozen=True)
class Panel:
    """Features `z (n, 2)` before or after a map, and the output of the frozen head on them.

    `retained`, `forgotten`: shares of test rows that the head classifies correctly, in [0, 1]. `confidence`: mean of
    the largest probability on forgotten rows; 1/6 is the smallest possible. `distance`: root mean square distance of
    forgotten rows to the mean of all training rows, divided by that of the retained training rows before the map.
    """

    title: str
    z: Tensor
    retained: float
    forgotten: float
    confidence: float
    distance: float


def make_features(seed: int, rows: int = ROWS) -> tuple[Tensor, Tensor]:
    """Draw features `(6 rows, 2)` float32 around six points of a circle, and their labels `(6 rows,)`."""
    generator = torch.Generator().manual_seed(seed)
    angle = torch.arange(CLASSES) * (2 * torch.pi / CLASSES)
    centres = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.arange(CLASSES).repeat_interleave(rows)
    return centres[labels] + SPREAD * torch.randn(len(labels), 2, generator=generator), labels


def fit_maps(z: Tensor, labels: Tensor, head: LinearHead, seed: int) -> dict[str, FeatureMap]:
    """Fit the maps by title: with retained data (linear in closed form, MLP) and zero-shot (MLP, scaled head rows)."""
    is_forgotten = labels == FORGOTTEN
    retain, forget = z[~is_forgotten], z[is_forgotten]
    linear = RepresentationLinear(BETA, max_distortion=None).fit(Moments.of(retain), Moments.of(forget), head)
    network = RepresentationMlp(HIDDEN, BETA, steps=STEPS, seed=seed, max_distortion=None).fit(retain, forget, head)
    zero_shot = RepresentationZeroShotMlp(HIDDEN, BETA, steps=STEPS, seed=seed, max_distortion=None)
    zero_shot.fit(forget, head, torch.bincount(labels), FORGOTTEN)
    return {"standard, linear": linear.map_, "standard": network.map_, "zero-shot": zero_shot.map_}


def run_toy(seed: int = 0) -> tuple[LinearHead, Tensor, list[Panel]]:
    """Train the head, fit the maps, and evaluate them on test rows drawn with another seed.

    Returns the head, the labels of the test rows, and the panels.
    """
    z, labels = make_features(seed)
    start = LinearHead(torch.zeros(CLASSES, 2), torch.zeros(CLASSES))
    head = HeadRefit(l2=L2).fit(start, z, labels).head_
    test, test_labels = make_features(seed + 1)
    mean = z.mean(dim=0)
    scale = float((z[labels != FORGOTTEN] - mean).square().sum(1).mean().sqrt())
    panels = [_panel("before", test, test_labels, head, mean, scale)]
    for title, fitted in fit_maps(z, labels, head, seed).items():
        panels.append(_panel(title, fitted(test), test_labels, head, mean, scale))
    return head, test_labels, panels


def _panel(title: str, z: Tensor, labels: Tensor, head: LinearHead, mean: Tensor, scale: float) -> Panel:
    z, forget = z.float(), labels == FORGOTTEN
    logits = head.logits(z)
    right = (logits.argmax(1) == labels).float()
    return Panel(
        title,
        z,
        float(right[~forget].mean()),
        float(right[forget].mean()),
        float(logits[forget].softmax(1).amax(1).mean()),
        float((z[forget] - mean).square().sum(1).mean().sqrt()) / scale,
    )


def draw(head: LinearHead, labels: Tensor, panels: list[Panel]) -> bytes:
    """PNG with one plot per panel: the features over the decision regions of the frozen head; forgotten is black."""
    colours = matplotlib.colormaps["tab10"](np.arange(1, CLASSES + 1))
    colours[FORGOTTEN] = (0, 0, 0, 1)
    figure = Figure(figsize=(3.1 * len(panels), 3.8), layout="constrained")
    limit = RADIUS + 4 * SPREAD
    grid = torch.linspace(-limit, limit, 241)
    points = torch.stack(torch.meshgrid(grid, grid, indexing="xy"), dim=2).reshape(-1, 2)
    regions = head.logits(points).argmax(1).reshape(len(grid), len(grid)).numpy()
    axes: Any
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.imshow(colours[regions], extent=(-limit, limit, -limit, limit), origin="lower", alpha=0.15)
        for label in [*range(1, CLASSES), FORGOTTEN]:
            z = panel.z[labels == label].numpy()
            axes.scatter(z[:, 0], z[:, 1], s=3, color=colours[label], linewidths=0)
        axes.set(xlim=(-limit, limit), ylim=(-limit, limit), xticks=[], yticks=[])
        axes.set_title(
            f"{panel.title}\nretained {100 * panel.retained:.1f} %, forgotten {100 * panel.forgotten:.1f} %", fontsize=9
        )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80, metadata={"Software": None})
    return out.getvalue()


def main() -> None:
    """Run the toy example, write its picture and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m expunge.reproduce.gaussians", description=__doc__)
    parser.add_argument("--out", type=Path, default=PICTURE, help="the PNG to write")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    head, labels, panels = run_toy(options.seed)
    write_bytes(options.out, draw(head, labels, panels))
    for p in panels:
        log_message(
            f"{p.title:<17} retained {100 * p.retained:6.2f} %  forgotten {100 * p.forgotten:6.2f} %  "
            f"confidence {p.confidence:.3f}  distance {p.distance:.3f}"
        )


if __name__ == "__main__":
    main()
