"""Extraction with torchrun: processes on one machine, or on several with a shared file system, divide one plan.

torchrun --nproc-per-node 2 -m expunge.stages.extract original
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from expunge.features.extract import Extraction

# All ranks wait for the slowest one, which may take hours longer; if one fails, torchrun terminates all.
PATIENCE = timedelta(days=30)


@dataclass(frozen=True)
class Torchrun:
    """The rank of this process and the numbers of processes. Rank 0 plans, publishes the store and reports."""

    rank: int
    world_size: int
    local_world_size: int  # processes on this machine

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> Torchrun:
        """Read RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; make only the GPU of this process visible."""
        process = cls(
            int(environment.get("RANK", 0)),
            int(environment.get("WORLD_SIZE", 1)),
            int(environment.get("LOCAL_WORLD_SIZE", 1)),
        )
        if process.world_size > 1:
            # Set before CUDA is initialised, so that helper threads and pinned memory use the same GPU.
            visible = environment.get("CUDA_VISIBLE_DEVICES", "")
            gpus = visible.split(",") if visible else [str(i) for i in range(process.local_world_size)]
            environment["CUDA_VISIBLE_DEVICES"] = gpus[int(environment.get("LOCAL_RANK", 0)) % len(gpus)]
        return process

    def make(self, extraction: Extraction) -> None:
        """The engine: rank 0 broadcasts which shards are missing, each rank makes its share, then all synchronise."""
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
