"""validate: check the dataset, the split or the features with Great Expectations; a failure stops the pipeline."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from expunge.quality import validate_dataset, validate_features, validate_split
from expunge.stages import run
from expunge.system.files import write_json
from expunge.system.paths import DATA_DOCS, DATASET, FEATURES, ORIGINAL, SPLIT, VALIDATION
from expunge.system.progress import log_message

CHECKS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dataset": lambda docs: validate_dataset(DATASET, docs),
    "split": lambda docs: validate_split(SPLIT, DATASET, docs),
    "features": lambda docs: validate_features(FEATURES / ORIGINAL, DATASET, docs),
}


def main() -> None:
    """Run the gate that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=CHECKS)
    what = parser.parse_args().what
    result = CHECKS[what](DATA_DOCS / what)
    write_json(VALIDATION / f"{what}.json", result)
    log_message(f"validate {what}: {len(result['checks'])} checks passed; Data Docs in {DATA_DOCS / what}")


if __name__ == "__main__":
    run(main)
