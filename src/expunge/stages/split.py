"""split: which rows are forgotten."""

from expunge.config import load_config
from expunge.data.dataset import Dataset
from expunge.data.split import split
from expunge.stages import run
from expunge.system.paths import DATASET, SPLIT
from expunge.system.progress import log_message


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
    log_message(f"split: {request['forget_rows']:,} rows to forget, {request['retain_rows']:,} retained")


if __name__ == "__main__":
    run(main)
