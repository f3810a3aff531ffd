"""`dvc commit --force` for several stages and `.dvc` files at once: python -m expunge.system.dvc_commit NAME...

DVC's command handles one name at a time, and for each reads and writes the whole of dvc.lock with a parser written in
Python. That took 10 of the 76 processor seconds of a request; doing it once takes about one. [measured]
"""

import sys

from expunge.system import warm

warm.hand_over(sys.orig_argv)

from dvc.repo import Repo, lock_repo  # noqa: E402


def commit(repo: Repo, names: list[str]) -> None:
    """Save and commit the stages that `names` refer to, then write each of their files once."""
    known = {stage.addressing: stage for stage in repo.index.stages}
    stages = [known[name] for name in names]
    for stage in stages:
        stage.save()
        stage.commit()
    for file in {stage.dvcfile.path: stage.dvcfile for stage in stages}.values():
        file.dump_stages([stage for stage in stages if stage.dvcfile.path == file.path], update_pipeline=False)


if __name__ == "__main__":
    with Repo() as repo, lock_repo(repo):
        commit(repo, sys.argv[1:])
