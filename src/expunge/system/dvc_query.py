"""What DVC knows about the workspace, as JSON: python -m expunge.system.dvc_query state|places.

state    `stale`: stages and `.dvc` files that are out of date, as `dvc status --json` has them; `stages`: all stages
places   `cache`: the folder of the cache; `remotes`: their addresses, by name; `index`: the folder outside the
         workspace in which DVC keeps the paths that it has seen

DVC's own commands answer these one at a time, and each of them reads the workspace anew.
"""

import json
import sys
from typing import Any

from expunge.system import warm

warm.hand_over(sys.orig_argv)

from dvc.exceptions import DvcException  # noqa: E402
from dvc.repo import Repo, lock_repo  # noqa: E402
from dvc.stage import PipelineStage  # noqa: E402


def state(repo: Repo) -> dict[str, Any]:
    """Return the stages and which of them are out of date."""
    with lock_repo(repo):
        return {
            "stale": repo.status(),
            "stages": [stage.addressing for stage in repo.index.stages if isinstance(stage, PipelineStage)],
        }


def places(repo: Repo) -> dict[str, Any]:
    """Return where DVC stores what belongs to the workspace."""
    remotes = {name: remote["url"] for name, remote in repo.config["remote"].items()}
    return {"cache": repo.cache.local_cache_dir, "remotes": remotes, "index": repo.site_cache_dir}


def main() -> None:
    """Print the answer, or exit with DVC's words."""
    try:
        with Repo() as opened:
            print(json.dumps({"state": state, "places": places}[sys.argv[1]](opened)))
    except DvcException as e:
        raise SystemExit(f"error: {e}") from None


if __name__ == "__main__":
    main()
