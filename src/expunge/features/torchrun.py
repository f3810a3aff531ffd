"""`torchrun`: several processes of one machine, or of several with one file system, share one plan.

torchrun --nproc-per-node 2 -m expunge.stages.extract original
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from expunge.features.extract import Extraction

# The ranks wait for the slowest, which may have hours of work left; torchrun ends all of them when one fails.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Torchrun:
    """Which of how many processes this one is, as torchrun says. Rank 0 decides, publishes and reports."""

    rank: int
    world_size: int
    local_world_size: int  # processes on this machine

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Torchrun:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; of several GPUs this process keeps its own."""
        process = cls(
            int(environment.get("RANK", 0)),
            int(environment.get("WORLD_SIZE", 1)),
            int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
        if process.world_size > 1:
            # Before CUDA starts: helper threads and pinned memory then belong to the right GPU, too.
            visible = environment.get("CUDA_VISIBLE_DEVICES", "")
            gpus = visible.split(",") if visible else [str(i) for i in range(process.local_world_size)]
            environment["CUDA_VISIBLE_DEVICES"] = gpus[int(environment.get("LOCAL_RANK", 0)) % len(gpus)]
        return process

    def make(self, extraction: Extraction) -> None:
        """The engine: rank 0 says which shards are missing, each rank makes its share, all wait for the last."""
        distributed.init_process_group("gloo", timeout=PATIENCE)
        try:
            missing = torch.zeros(len(extraction.plan.shards), dtype=torch.int64)
            if self.rank == 0:
                missing[[shard.index for shard in extraction.missing()]] = 1
                extraction.choose()
            distributed.broadcast(missing, 0)
            shards = [extraction.plan.shards[i] for i in missing.nonzero().flatten().tolist()]
            mine = shards[self.rank :: self.world_size]
            with extraction.progress(mine, f"extract, rank {self.rank} of {self.world_size}") as advance:
                extraction.run(mine, advance)
            distributed.barrier()
        finally:
            distributed.destroy_process_group()
