"""split: which rows are forgotten."""

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.split import split
from expunge.paths import DATASET, SPLIT
from expunge.progress import say
from expunge.stages import run


def main() -> None:
    config = load_config().split
    request = split(
        Dataset(DATASET),
        SPLIT,
        selector=config.selector,
        classes=config.classes,
        fraction=config.fraction,
        file=config.file,
        filter=config.filter,
        duplicates=config.duplicates,
        validation=config.validation,
        seed=config.seed,
    )
    say(f"split: {request['forget_rows']:,} rows to forget, {request['retain_rows']:,} retained")


if __name__ == "__main__":
    run(main)
