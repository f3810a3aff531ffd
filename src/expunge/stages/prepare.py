"""prepare: convert the source into one canonical Parquet dataset."""

from expunge.config import load_config
from expunge.data.prepare import prepare
from expunge.stages import run
from expunge.system.paths import DATASET, RAW
from expunge.system.preflight import checked_beside
from expunge.system.progress import log_message


def main() -> None:
    """Run the stage `prepare`, and check params.yaml in a second process meanwhile."""
    config = load_config()
    data = config.data
    with checked_beside():
        manifest = prepare(
            data.source,
            DATASET,
            path=data.path,
            test_fraction=data.test_fraction,
            seed=data.seed,
            raw_dir=RAW,
            root=data.root,
            download=data.download,
            columns=data.columns,
            canaries=data.canaries,
            unseen=config.split.unseen,
        )
    log_message(
        f"prepare: {manifest['rows_train']:,} training and {manifest['rows_test']:,} test rows of {data.source}"
    )


if __name__ == "__main__":
    run(main)
