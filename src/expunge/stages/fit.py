"""fit: one method of the table, from Moments and forget rows to a map or a head."""

import argparse
import time

import psutil

from expunge.config import load_config
from expunge.core import LinearHead
from expunge.data.split import Split
from expunge.features.store import FeatureStore
from expunge.files import staged_dir, write_json, write_manifest
from expunge.methods import Request, fit
from expunge.models.checkpoint import load_classifier
from expunge.paths import COST, FEATURES, MODELS, ORIGINAL, SPLIT
from expunge.progress import say
from expunge.stages import run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("method")
    name = parser.parse_args().method
    settings = load_config().fit.get(name, {})
    split = Split(SPLIT)
    store = FeatureStore(FEATURES / ORIGINAL)
    classifier = load_classifier(MODELS / ORIGINAL)
    request = Request(
        store=store,
        forget_rows=split.rows("forget"),
        retain_rows=split.rows("retain"),
        head=LinearHead(classifier.head.weight, classifier.head.bias),
        forget_classes=split.request["whole_classes"],
        saw_forget_data=classifier.card.saw_forget_data,
    )
    start = time.perf_counter()
    unlearned = fit(name, request, settings)
    seconds = time.perf_counter() - start
    with staged_dir(MODELS / "unlearned" / name) as staging:
        unlearned.save(staging)
        write_manifest(staging, "expunge.stages.fit", method=name, settings=settings)
    peak = psutil.Process().memory_info().rss / 2**20
    write_json(COST / f"fit-{name}.json", {"fit_s": round(seconds, 4), "peak_rss_mb": round(peak, 1)})
    say(f"fit {name}: {seconds:.3f} s")


if __name__ == "__main__":
    run(main)
