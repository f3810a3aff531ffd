"""split: choose the rows that are forgotten."""

from expunge.config import load_config
from expunge.data.corrections import SELECTOR as CORRECT
from expunge.data.dataset import Dataset
from expunge.data.schema import TRAIN
from expunge.data.split import split
from expunge.features.nearby import Nearby, memorisation_scores
from expunge.features.store import FeatureStore
from expunge.stages import run
from expunge.system.paths import DATASET, FEATURES, ORIGINAL, SPLIT
from expunge.system.progress import log_message


def main() -> None:
    """Run the stage `split`."""
    config = load_config().split
    dataset = Dataset(DATASET)
    store = FeatureStore(FEATURES / ORIGINAL)
    train = dataset.splits() == TRAIN
    subjects = dataset.table(["subject"])["subject"].to_pylist() if "subject" in dataset.columns else None
    request = split(
        dataset,
        SPLIT,
        selector=config.selector,
        classes=config.classes,
        fraction=config.fraction,
        file=config.file,
        filter=config.filter,
        duplicates=config.duplicates,
        near_duplicates=config.near_duplicates,
        validation=config.validation,
        seed=config.seed,
        more_than_half=config.more_than_half,
        neighbours=Nearby(store, train, subjects, config.seed),
        scores=lambda: memorisation_scores(store, dataset.labels(), train, len(dataset.class_names)),
    )
    asked = "labels to correct" if request["selector"] == CORRECT else "rows to forget"
    log_message(f"split: {request['forget_rows']:,} {asked}, {request['retain_rows']:,} retained")


if __name__ == "__main__":
    run(main)
