"""prepare: the source becomes one canonical Parquet dataset."""

from expunge.config import load_config
from expunge.data.prepare import prepare
from expunge.paths import DATASET, RAW
from expunge.progress import say
from expunge.stages import run


def main() -> None:
    data = load_config().data
    manifest = prepare(
        data.source, DATASET, path=data.path, test_fraction=data.test_fraction, seed=data.seed, raw_dir=RAW
    )
    say(f"prepare: {manifest['rows_train']:,} training and {manifest['rows_test']:,} test rows of {data.source}")


if __name__ == "__main__":
    run(main)
