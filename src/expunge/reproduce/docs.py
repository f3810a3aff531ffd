"""Write the parts of docs/reproduce.md that come from code and from runs: `python -m expunge.reproduce.docs`.

The table of costs is that of `expunge reproduce --list`. Each preset with rounds that was run here, by
`expunge reproduce NAME`, gives its table and its plot; the parts of other presets stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from expunge.report.summary import CONTROL
from expunge.report.tables import markdown_table
from expunge.reproduce.costs import RATES
from expunge.reproduce.listing import listed
from expunge.reproduce.presets import load, names
from expunge.reproduce.rounds import BEFORE
from expunge.reproduce.rounds_page import draw_rounds, exact_claims
from expunge.reproduce.run import HOME
from expunge.system.errors import ExpungeError
from expunge.system.files import read_json, write_bytes, write_text
from expunge.system.progress import log_message

PAGE, PICTURES = Path("docs/reproduce.md"), Path("docs/images")
COSTS = "costs"
END = "<!-- end of what is written -->"
SUMMED = {"classes": "class requests", "rows": "row requests", "subjects": "people"}

Entries = Sequence[Mapping[str, Any]]


def begin(part: str) -> str:
    """The line in front of the written part `part` of the page."""
    return f"<!-- {part}: written by python -m expunge.reproduce.docs -->"


def with_part(text: str, part: str, content: str) -> str:
    """Replace what the page `text` has between the marks of `part`. Raises ExpungeError if it lacks a mark."""
    before, mark, rest = text.partition(begin(part))
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ExpungeError(f"{PAGE}: needs the lines `{begin(part)}` and `{END}`; restore them from git")
    return f"{before}{mark}\n\n{content}\n\n{end}{after}"


def costs_table(root: Path) -> str:
    """Table of the estimated cost of every preset with a data set."""
    body = [[f"`{p.name}`", *p.times, p.disk, p.memory] for p in listed(root) if p.disk != "-"]
    return markdown_table(["preset", *RATES, "disk", "memory"], body)


def in_order(found: Mapping[str, Any]) -> dict[str, Any]:
    """The results with the original and the control first, then the methods by name."""
    names = sorted(found["methods"], key=lambda name: (name != BEFORE, name != CONTROL, name))
    return {**found, "methods": {name: found["methods"][name] for name in names}}


def rounds_part(name: str, found: Mapping[str, Any]) -> str:
    """The table of successive requests, what exact deletion did, and the plot, which lies in docs/images."""
    plot = f"![Accuracy over rounds, {name}](images/{picture(name)})"
    return "\n\n".join(part for part in (rounds_table(found), exact_claims(found), plot) if part)


def picture(name: str) -> str:
    """File name of the plot of the preset `name`."""
    return f"rounds-{name}.png"


def rounds_table(found: Mapping[str, Any]) -> str:
    """Accuracies in percent after the first, the middle and the last round, and on earlier requests after the last.

    The time is that of the fastest round, which other work on the machine delays least: processor seconds, or those of
    the clock for results of earlier versions.
    """
    count = len(found["requests"])
    shown = sorted({1, (count + 1) // 2, count})
    kinds = [kind for kind in SUMMED if any(r["kind"] == kind for r in found["requests"])]
    head = ["method", *(f"test, round {n}" for n in shown), f"retained, round {shown[0]}", f"retained, round {count}"]
    for kind in kinds:
        head.append(f"{'highest' if kind == 'classes' else 'mean'} of the {SUMMED[kind]}, round {count}")
        if kind != "classes":
            head.append(f"loss AUC of the {SUMMED[kind]}, round {count}")
    timed = [e for entries in found["methods"].values() for e in entries if "refused" not in e]
    key = "processor_s" if all("processor_s" in e for e in timed) else "fit_s"
    body = []
    for name, entries in found["methods"].items():
        cells = [_percent(entries[n - 1], "test") for n in shown]
        cells += [_percent(entries[n - 1], "retain") for n in (shown[0], count)]
        for kind in kinds:
            cells += _of_requests(found["requests"], entries[-1], kind)
        body.append([name, *cells, _seconds(name, entries, key)])
    return markdown_table([*head, "s, fastest round" if key == "fit_s" else "processor s, fastest round"], body)


def _percent(entry: Mapping[str, Any], key: str) -> str:
    return "refused" if "refused" in entry else f"{100 * entry[key]:.1f}"


def _of_requests(requests: Entries, entry: Mapping[str, Any], kind: str) -> list[str]:
    """Accuracy on the requests of one kind, and the range of their loss AUC; for classes the accuracy alone."""
    cells = 1 if kind == "classes" else 2
    if "refused" in entry:
        return ["refused"] * cells
    own = [tested for asked, tested in zip(requests, entry["requests"], strict=True) if asked["kind"] == kind]
    accuracies = [100 * tested["accuracy"] for tested in own]
    if kind == "classes":
        return [f"{max(accuracies):.1f}"]
    aucs = [tested["auc"] for tested in own if tested["auc"] is not None]
    return [f"{np.mean(accuracies):.1f}", f"{min(aucs):.2f} to {max(aucs):.2f}" if aucs else "–"]


def _seconds(name: str, entries: Entries, key: str) -> str:
    known = [entry[key] for entry in entries if "refused" not in entry]
    if name == BEFORE or not known:
        return ""
    return f"{min(known):.0f}" if min(known) >= 10 else f"{min(known):.2g}"


def main() -> None:
    """Write the costs, and the parts of the presets with rounds that were run here."""
    root = Path()
    text = with_part((root / PAGE).read_text(encoding="utf-8"), COSTS, costs_table(root))
    for name in names(root):
        results = root / HOME / name / "rounds.json"
        if load(root, name).rounds and begin(name) in text and results.is_file():
            found = in_order(read_json(results))
            text = with_part(text, name, rounds_part(name, found))
            write_bytes(root / PICTURES / picture(name), draw_rounds(found))
            log_message(f"{PAGE}: {name}, from {results}")
    write_text(root / PAGE, text)


if __name__ == "__main__":
    main()
