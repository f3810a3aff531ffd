"""Sections of the documentation that a benchmark writes: between `<!-- NAME:begin -->` and `<!-- NAME:end -->`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from expunge.system.files import write_text

DOCS = Path(__file__).parents[1] / "docs"


def write_section(page: Path, name: str, lines: Sequence[str]) -> None:
    """Replace what stands between the marks of `name` in `page` by `lines`."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    head, rest = page.read_text(encoding="utf-8").split(begin)
    write_text(page, head + "\n".join([begin, "", *lines, ""]) + end + rest.split(end)[1])


def plot(sizes: Sequence[Mapping[str, float]], size: str, seconds: Mapping[str, str], path: Path) -> None:
    """Draw seconds against `size`, both logarithmic. `seconds`: the key in `sizes` of each line, by its label."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 3.6), layout="constrained")
    at = [found[size] for found in sizes]
    for label, key in seconds.items():
        axes.loglog(at, [found[key] for found in sizes], "o-", label=label)
    axes.set_xticks(at, [f"{x:,}" for x in at])
    axes.minorticks_off()
    axes.set_xlabel(size)
    axes.set_ylabel("seconds")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
