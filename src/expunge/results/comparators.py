"""python -m expunge.results.comparators: run every method beside each other, and write them into docs/comparators.md.

Two requests on the small ResNet over three training seeds, and three on a pretrained network over one, each with every
method that answers it and the settings that params.yaml has for it; one on texts with the methods that came nearest.
Every run is a workspace below `.expunge/results`, whose finished stages DVC knows: a command that was ended goes on
where it was, and of methods that were added later only those run. What the page needs of a finished run is kept in
`benchmarks/comparators`, in git, so that seeds can be run one at a time and on several machines.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from expunge.config import PARAMS
from expunge.data.example_texts import ENCODER, fetch_example_texts
from expunge.methods.table import METHODS
from expunge.report.summary import CONTROL
from expunge.results.comparators_page import measured_sections, section, with_measured
from expunge.results.pooled import pool_summaries
from expunge.results.variants import HOME, Variant, finished, run_variants
from expunge.stages import run
from expunge.system.errors import ConfigError, ExpungeError
from expunge.system.files import read_json, write_json, write_text
from expunge.system.paths import COST, RAW, SUMMARY
from expunge.system.progress import log_message

PAGE, RECORDS = Path("docs/comparators.md"), Path("benchmarks/comparators")
# What is kept of the block of a model: measurements, how its settings were chosen, and the outcome of its verdict. Its
# cost is kept in processor seconds.
MEASURED = ("accuracy", "divergence", "membership", "representation", "settings")
OUTCOME = ("claims", "utility", "control")
SEEDS = (1, 2, 3)
PREFIX = "comparators-"  # of the names of the experiments
REQUESTS = ("class", "rows", "pretrained", "pretrained-rows", "pretrained-people", "texts")
UNSEEN = 0.1
PRETRAINED_CLASS, TEXTS_CLASS = "Flags", "songs-poems"
ENCODER_FOLDER = HOME / "texts"
# Characters of emoji that stand for people: 25 of the 1,831, drawn once. All pictures of a character are rows of one
# person in that dataset.
PEOPLE_FILE = HOME / "people.csv"
PEOPLE = (
    "a", "anguished", "bagel", "black_right_pointing_triangle_with_double_vertical_bar", "cricket", "ferry",
    "fishing_pole_and_fish", "flag-co", "flag-th", "information_source", "japanese_castle",
    "leftwards_arrow_with_hook", "love_hotel", "man_with_gua_pi_mao", "monkey_face", "monorail", "musical_score",
    "ok_woman", "playground_slide", "shaking_face", "shower", "snowman_without_snow", "train",
    "vertical_traffic_light", "woman-cartwheeling",
)  # fmt: skip
# Those that were nearest to retrained models elsewhere, and the one that was published for transformers.
FOR_TEXTS = ("head-refit", "teacher-map", "relearn", "short-retrain", "fine-tune", "neggrad-plus", "residual-alignment")


def methods_for(root: Path, kind: str, only: Sequence[str] = ()) -> list[str]:
    """Names of the methods in the params file of `root` that answer requests of `kind`, with the control first.

    `kind`: "classes" or "rows". Entries that are further settings of a method are left out, and so are methods for
    models that were trained for deletion. `only` restricts the result to these methods and the control. Raises
    ConfigError for a name in `only` that is no method of the params file.
    """
    fit = yaml.safe_load((root / PARAMS).read_text(encoding="utf-8"))["fit"]
    able = [
        name
        for name, method in METHODS.items()
        if name in fit and kind in method.kind.facts.requests and method.kind.facts.is_guarded
    ]
    every = {name for name in METHODS if name in fit}
    if unknown := [name for name in only if name not in every]:
        raise ConfigError(f"{unknown[0]}: no method that {PARAMS} has settings for; `expunge methods` lists them")
    return [CONTROL, *(name for name in able if not only or name in only)]


def methods_run(root: Path, experiment: str) -> set[str]:
    """Methods that the workspaces of an experiment have run or are running, from their params."""
    files = (root / HOME / experiment).glob("*/params.yaml")
    return {name for file in files for name in yaml.safe_load(file.read_text(encoding="utf-8"))["methods"]}


def experiments(root: Path, only: Sequence[str] = ()) -> tuple[Variant, ...]:
    """The experiments of the two requests; the first word of each title names the kind of request.

    `only` restricts them to these methods and those that were run before, which stay in the table.
    """

    def methods(experiment: str, kind: str) -> list[str]:
        earlier = sorted(methods_run(root, experiment) & set(METHODS) - {CONTROL}) if only else []
        return methods_for(root, kind, [*only, *earlier])

    return (
        Variant(
            "comparators-class",
            "class: Fashion-MNIST, small ResNet, forget class 5 (sandal)",
            SEEDS,
            {"methods": methods("comparators-class", "classes")},
        ),
        Variant(
            "comparators-rows",
            "rows: Fashion-MNIST, small ResNet, forget a random 10 % of the training rows",
            SEEDS,
            {
                "methods": methods("comparators-rows", "rows"),
                "split": {"selector": "random", "fraction": 0.1, "unseen": UNSEEN},
            },
        ),
        *(
            Variant(
                f"comparators-{name}",
                f"{name}: emoji, EfficientNet-Lite0 of ImageNet, fine-tuned, forget {what}",
                (1,),
                {
                    **fine_tuned("efficientnet-lite0", "_blocks.10"),
                    "methods": methods(f"comparators-{name}", kind),
                    "data": {"source": "emoji"},
                    "split": split,
                },
            )
            for name, what, kind, split in (
                ("pretrained", f"class {PRETRAINED_CLASS}", "classes", {"classes": [PRETRAINED_CLASS]}),
                (
                    "pretrained-rows",
                    "a random 10 % of the training rows",
                    "rows",
                    {"selector": "random", "fraction": 0.1, "unseen": UNSEEN},
                ),
                (
                    "pretrained-people",
                    f"{len(PEOPLE)} people",
                    "rows",
                    {"selector": "subjects", "file": str((root / PEOPLE_FILE).resolve()), "unseen": UNSEEN},
                ),
            )
        ),
        Variant(
            "comparators-texts",
            f"texts: quotations, all-MiniLM-L6-v2, fine-tuned, forget class {TEXTS_CLASS}",
            (1,),
            {
                **fine_tuned(f"sentence:{ENCODER_FOLDER / ENCODER}", "encoder.layer.2"),
                "methods": [CONTROL, *FOR_TEXTS],
                "data": {"source": "fortunes"},
                "split": {"classes": [TEXTS_CLASS]},
            },
        ),
    )


def fine_tuned(model: str, cut: str) -> dict[str, Any]:
    """Return the changes for a pretrained network whose layers are all trained, and relearned above `cut`."""
    return {
        "model": {"name": model, "weights": "public"},
        "train": {"recipe": "finetune", "epochs": 3, "batch_size": 64},
        "activations": {"cuts": [cut]},
        "fit": {
            "relearn": {"cut": cut},
            "short-retrain": {"cut": cut},
            "oracle-match": {"after": {"cut": cut}},
            "teacher-map": {"after": {"cut": cut}},
        },
    }


def record(root: Path, variant: Variant) -> None:
    """Keep what the page needs of the finished runs of an experiment."""
    for seed, workspace in finished(root, variant).items():
        summary = read_json(workspace / SUMMARY)
        retrains = [read_json(file) for file in sorted((workspace / COST).glob("retrain-*.json"))]
        retrain_s = float(np.mean([cost["train_s"] * busy(cost) for cost in retrains]))
        kept = kept_of(summary)
        for name, block in kept["methods"].items():
            cost = read_json(workspace / COST / f"fit-{name}.json")
            block["cost"] = {"fit_s": round(cost["fit_s"] * busy(cost), 4), "retrain_s": round(retrain_s, 2)}
        write_json(_record(root, variant, seed), kept)


def busy(cost: Mapping[str, Any]) -> float:
    """Return the processor seconds that a stage used per second of its time, from its file in `reports/cost`.

    1.0 for a stage too short to be sampled. Seconds times this do not depend on what else the machine computed.
    """
    samples, (start, end) = cost.get("usage", {}).get("cpu_percent_of_one_core"), cost["span"]
    if not samples:
        return 1.0
    times = np.diff([start, *samples["time"]])
    return float(times @ np.asarray(samples["value"]) / 100 / (end - start))


def recorded(root: Path, variant: Variant) -> dict[int, dict[str, Any]]:
    """Return the runs of an experiment that were kept, by training seed."""
    places = {seed: _record(root, variant, seed) for seed in variant.seeds}
    return {seed: read_json(place) for seed, place in places.items() if place.is_file()}


def kept_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a summary from which the page is written."""

    def block(whole: Mapping[str, Any]) -> dict[str, Any]:
        part = {key: whole[key] for key in MEASURED if key in whole}
        if "verdict" in whole:
            part["verdict"] = {key: whole["verdict"][key] for key in OUTCOME}
        return part

    kept = {key: summary[key] for key in ("model", "request", "refused")}
    return kept | {key: {name: block(b) for name, b in summary[key].items()} for key in ("references", "methods")}


def _record(root: Path, variant: Variant, seed: int) -> Path:
    return root / RECORDS / f"{variant.name.removeprefix(PREFIX)}-{seed}.json"


def write_comparators(root: Path, variants: Iterable[Variant]) -> None:
    """Write the finished experiments into the page, which keeps its sections of those that did not run here.

    Raises ExpungeError if none is finished.
    """
    variants = tuple(variants)
    found = {v.title: section(v, pool_summaries(runs)) for v in variants if (runs := recorded(root, v))}
    if not found:
        raise ExpungeError(f"{root / HOME}: no finished experiment; run python -m expunge.results.comparators")
    text = (root / PAGE).read_text(encoding="utf-8")
    found = {**measured_sections(text), **found}
    write_text(root / PAGE, with_measured(text, [found[v.title] for v in variants if v.title in found]))
    log_message(f"comparators: {PAGE}")


def main() -> None:
    """Run the experiments that the command line names, and write docs/comparators.md."""
    parser = argparse.ArgumentParser(prog="python -m expunge.results.comparators", description=__doc__)
    parser.add_argument(
        "only", nargs="*", metavar="METHOD", help="run only these methods and the control; by default all"
    )
    parser.add_argument("--request", choices=REQUESTS, help="run only this request")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, help="run only these training seeds")
    parser.add_argument("--collect", action="store_true", help="run nothing; write the page from what is finished")
    arguments = parser.parse_args()
    root = Path.cwd()
    variants = experiments(root, arguments.only)
    if arguments.request:
        variants = tuple(v for v in variants if v.name == PREFIX + arguments.request)
    runs = [replace(variant, seeds=(seed,)) for variant in variants for seed in arguments.seeds or variant.seeds]
    if arguments.collect:
        for run_of in runs:
            record(root, run_of)
        write_comparators(root, experiments(root))
        return
    if any(v.name == "comparators-texts" for v in variants) and not (root / ENCODER_FOLDER / ENCODER).exists():
        fetch_example_texts(root / ENCODER_FOLDER, root / RAW / "texts")
    if any(v.changes["split"].get("file") for v in variants if "split" in v.changes):
        write_text(root / PEOPLE_FILE, "subject\n" + "\n".join(PEOPLE) + "\n")
    for run_of in runs:  # write the page after each run, so that an interruption keeps what is finished
        run_variants(root, [run_of])
        record(root, run_of)
        write_comparators(root, experiments(root))


if __name__ == "__main__":
    run(main)
