"""What DVC knows about the workspace, as JSON: python -m expunge.system.dvc_query state|places|plan [TARGET...].

plan     `needs`: what `dvc repro TARGETS` would look at, in its order, each with what it depends on; `stale`: those of
         it that are out of date themselves
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

from dvc.dvcfile import PROJECT_FILE  # noqa: E402
from dvc.exceptions import DvcException  # noqa: E402
from dvc.repo import Repo, lock_repo  # noqa: E402
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro  # noqa: E402
from dvc.stage import PipelineStage  # noqa: E402


def plan(repo: Repo, *targets: str) -> dict[str, Any]:
    """Return the stages and `.dvc` files of `targets` (all of dvc.yaml without any), and which are out of date."""
    with lock_repo(repo):
        graph = get_active_graph(repo.index.graph)
        steps = plan_repro(graph, collect_stages(repo, targets or [PROJECT_FILE]))
        needs = {step.addressing: [other.addressing for other in graph.successors(step)] for step in steps}
        return {"needs": needs, "stale": [name for name in repo.status() if name in needs]}


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
            asked, *targets = sys.argv[1:]
            print(json.dumps({"state": state, "places": places, "plan": plan}[asked](opened, *targets)))
    except DvcException as e:
        raise SystemExit(f"error: {e}") from None


if __name__ == "__main__":
    main()
