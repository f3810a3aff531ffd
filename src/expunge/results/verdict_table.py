"""python -m expunge.results.verdict_table: what the first verdict said wrongly, judged again by the present rules.

Takes the trained and judged trials of the calibration study, and trains a few more on requests of a tenth of the rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from expunge.evaluation.claims import claims_of, may_serve, shown_claims
from expunge.evaluation.controls import LOGIT_MASK, LOOKUP_LIST, ORIGINAL
from expunge.evaluation.criteria import BACKBONE, CANNOT_TELL, EXACT, FEATURES, OUTPUTS, REFUTED, SHOWN
from expunge.report.summary import exact_of_retrained
from expunge.results.study_trials import LEACE, RETRAINED, StudyData, judge_trial, load_networks, train_trial
from expunge.results.verdict_study import HOME, RECIPES, load, records

Record = Mapping[str, Any]
Line = tuple[str, str, str]  # what is judged, the old outcome, the new one
MODULE = "expunge.results.verdict_table"
SMALL = ("1", "5", "20")
TENTH = 10  # trials of a lookup list over a tenth of the training rows
OLD = {
    "original, small": "level a or better in 37 of 40 / 32 of 40 (one of them d) / 7 of 30 trials",
    "retrained, small": "38 of 40 / 33 of 40 / 14 of 30",
    "retrained, two": "none in 110 of 110",
    "list": "level d, no failed gate",
    "skip": "registered as challenger, level a, in 47 s",
    "backbone": "passes on two of three classes",
    "head": "matches its reference by construction",
    "fallback": "level d without a check, certified even where its backbone saw the rows",
}


def few(
    data: StudyData, home: Path, trials: Iterable[int], sizes: tuple[str, ...], references: int
) -> Iterator[Record]:
    """Judge stored trials again with only the first `references` of their retrained models."""
    for trial in trials:
        networks = load_networks(home / data.name / f"weights-{trial:04d}.safetensors")
        yield from judge_trial(data, trial, networks, sizes, references=references)


def over_a_tenth(data: StudyData, home: Path, trials: Iterable[int]) -> Iterator[Record]:
    """Judge trials whose requests name a tenth of the training rows; missing networks are trained."""
    sizes = (str(data.train // TENTH),)
    for trial in trials:
        weights = home / data.name / f"tenth-{trial:04d}.safetensors"
        if not weights.is_file():
            train_trial(data, trial, weights, sizes)
        yield from judge_trial(data, trial, load_networks(weights), sizes, trained=sizes)


def outcomes(found: Sequence[Record], candidate: str, size: str | None = None, claim: str = OUTPUTS) -> str:
    """Text with how often one claim was shown, refuted and undecided for a candidate, and of how many records."""
    states = [r["claims"][claim] for r in found if r["candidate"] == candidate and size in (None, r["size"])]
    names = (SHOWN, REFUTED, CANNOT_TELL)
    parts = [f"{name} {states.count(name)}" for name in names if states.count(name)]
    return f"{', '.join(parts) or 'nothing judged'} of {len(states)}"


def each(found: Sequence[Record], candidate: str, sizes: Sequence[str]) -> str:
    """Text with `outcomes` for each size of request."""
    return "; ".join(f"{size}: {outcomes(found, candidate, size)}" for size in sizes)


def without_references(found: Sequence[Record]) -> str:
    """Text with how often LEACE could be registered for serving in a run with `reference: skip`."""
    served = total = 0
    for r in (r for r in found if r["candidate"] == LEACE):
        claims, _ = claims_of(r["gates"], {}, references=0)
        served += may_serve(shown_claims({"claims": claims}), OUTPUTS)
        total += 1
    return f"no claim without three retrained models: may serve in {served} of {total}, so nothing is registered"


def on_a_backbone_that_saw(found: Sequence[Record]) -> str:
    """Text with how often a claim is shown of a model that matches references whose backbone saw the rows."""
    shown = total = 0
    for r in (r for r in found if r["candidate"] == RETRAINED and r["size"] in ("600", "class")):
        controls = {c["candidate"]: c["gates"] for c in found if _is_control_of(c, r)}
        claims, _ = claims_of(
            r["gates"], controls, references=3, clean_references=False, exact=exact_of_retrained(False)
        )
        shown += bool(shown_claims({"claims": claims}))
        total += 1
    return f"such references are none: a claim shown of {shown} of {total} models that match them"


def _is_control_of(control: Record, r: Record) -> bool:
    same = (control["trial"], control["size"]) == (r["trial"], r["size"])
    return same and control["candidate"] in (ORIGINAL, LOGIT_MASK, LOOKUP_LIST)


def fallback() -> str:
    """Text with the claim `exact` of a retrained model whose backbone was trained anew, and one that was taken over."""
    parts = []
    for words, clean in (("trained anew", True), ("taken over from a model that saw the rows", False)):
        claims, _ = claims_of([], {}, references=2, clean_references=clean, exact=exact_of_retrained(clean))
        parts.append(f"backbone {words}: exact {claims[EXACT]}")
    return "judged like any model; " + ", ".join(parts)


def table(
    stored: Sequence[Record], one: Sequence[Record], two: Sequence[Record], tenth: Sequence[Record]
) -> list[Line]:
    """One line per failure of the first verdict.

    `stored`: judged trials of the study. `one`, `two`: some of these, judged with one and two retrained models.
    `tenth`: trials whose requests name a tenth of the rows.
    """
    sizes = " / ".join(SMALL)
    lines = [
        (f"the untouched original, {sizes} rows, one retrained model", "original, small", each(one, ORIGINAL, SMALL)),
        ("the same, three retrained models", "", each(stored, ORIGINAL, SMALL)),
        (f"an independent retrained model, {sizes} rows, one other", "retrained, small", each(one, RETRAINED, SMALL)),
        ("the same, three others", "", each(stored, RETRAINED, SMALL)),
        (
            "genuine retrained models, two references (600 rows, class)",
            "retrained, two",
            outcomes(two, RETRAINED),
        ),
        ("the same, three references", "", each(stored, RETRAINED, ("600", "class"))),
        ("a lookup list over a tenth of the rows, three references", "list", outcomes(tenth, LOOKUP_LIST)),
        ("the same on 600 rows and on a class", "", each(stored, LOOKUP_LIST, ("600", "class"))),
        ("LEACE with `reference: skip`", "skip", without_references(stored)),
        (
            "untouched backbone on a class request: features",
            "backbone",
            outcomes(stored, ORIGINAL, "class", FEATURES),
        ),
        ("the same: backbone", "", outcomes(stored, ORIGINAL, "class", BACKBONE)),
        ("head refit on a backbone that saw the rows", "head", on_a_backbone_that_saw(stored)),
        ("the retrained model of a request", "fallback", fallback()),
    ]
    return [(what, OLD.get(old, "–"), new) for what, old, new in lines]


def markdown(lines: Sequence[Line]) -> str:
    """Return the lines as a Markdown table."""
    head = ["| what is judged | old outcome | new outcome |", "|---|---|---|"]
    return "\n".join([*head, *(f"| {' | '.join(line)} |" for line in lines)]) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Judge what the table needs from the stored trials, and print it."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}", description=__doc__)
    parser.add_argument("--data", choices=sorted(RECIPES), default="fashion-mnist")
    parser.add_argument("--trials", type=int, default=40, help="trials that are judged by one or two retrained models")
    parser.add_argument("--home", type=Path, default=HOME)
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    with threadpool_limits(1):
        data, stored = load(given.data), records(given.home, given.data)
        trials = sorted({r["trial"] for r in stored})[: given.trials]
        one = list(few(data, given.home, trials, SMALL, 1))
        two = list(few(data, given.home, trials, ("600", "class"), 2))
        tenth = list(over_a_tenth(data, given.home, trials[:TENTH]))
    print(markdown(table(stored, one, two, tenth)))


if __name__ == "__main__":
    main()
