"""ensembles: attacks that need many models, on heads or on whole networks, as far as params ask and it is valid."""

from expunge.config import load_config
from expunge.ensembles import plan
from expunge.files import write_json
from expunge.paths import COST, ENSEMBLE_REPORT, ENSEMBLES
from expunge.stages import run


def main() -> None:
    config = load_config()
    decided = plan(config.model, config.ensembles)
    write_json(ENSEMBLES / "members.json", {"kind": decided.kind})
    write_json(ENSEMBLE_REPORT, decided.to_json())
    write_json(COST / "ensembles.json", {"ensembles_s": 0.0})


if __name__ == "__main__":
    run(main)
