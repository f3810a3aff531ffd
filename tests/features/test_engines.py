"""Every engine writes the same bytes as a single process, even if one of its workers is killed."""

import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from expunge.data.dataset import Dataset
from expunge.data.prepare import prepare
from expunge.features.torchrun import Torchrun
from expunge.models.checkpoint import save_classifier
from expunge.models.zoo import build
from expunge.stages.extract import main
from expunge.system.errors import ConfigError
from expunge.system.files import read_json, staged_dir, write_manifest
from expunge.system.ray_cluster import check_address
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
SLOWER = 40  # With pictures of 40 pixels the extraction takes a few seconds.
STAGE = [sys.executable, "-m", "expunge.stages.extract"]


def lay_out(workspace: Path, image_size: int = 8, **extract) -> Path:
    """Make a workspace with a dataset, a model, and params for nine small shards. Larger pictures take longer."""
    prepare("digits", workspace / "data/dataset")
    classifier = build(
        "resnet-small", 10, Dataset(workspace / "data/dataset").image_shape, image_size=image_size, seed=1
    )
    with staged_dir(workspace / "models/original") as staging:
        description = save_classifier(staging, classifier)
        write_manifest(staging, "test", backbone_digest=description["backbone_digest"])
    params = yaml.safe_load((ROOT / "params.demo.yaml").read_text())
    params["features"] |= {"batch_size": 50, "shard_rows": 200}
    params["extract"] |= extract
    (workspace / "params.yaml").write_text(yaml.safe_dump(params))
    return workspace


def start(workspace: Path, command: list[str], **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [*command, "original"],
        cwd=workspace,
        env={**ENVIRONMENT, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen) -> str:
    out = process.communicate(timeout=300)[0]
    assert process.returncode == 0, out[-3000:]
    return out


def contents(workspace: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in (workspace / "data/features/original").iterdir()}


def run_here(workspace: Path, *arguments: str) -> None:
    """Run the stage in this process, because starting another takes longer than the stage."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace)
        patch.setattr(sys, "argv", ["extract", "original", *arguments])
        main()


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    workspace = lay_out(tmp_path_factory.mktemp("local"))
    run_here(workspace)
    return workspace


def test_the_stage_says_what_it_cost_beside_the_store(local):
    cost = read_json(local / "reports/cost/extract-original.json")
    assert cost["rows"] == cost["rows_made"] == 1797 and cost["engine"] == "local" and cost["rows_per_s"] > 0
    assert len(cost["shards"]) == 9
    steps = {"read_s", "decode_s", "forward_s", "waited_for_data_s", "write_s"}
    assert all(set(shard) == steps for shard in cost["shards"].values())
    assert not any(step.encode() in contents(local)["manifest.json"] for step in steps)


def test_a_damaged_shard_of_a_store_alone_is_repaired(local, tmp_path, capsys):
    workspace = tmp_path / "workspace"
    shutil.copytree(local, workspace)
    store = workspace / "data/features/original"
    damaged = store / "part-00003.parquet"
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(bytes(data))
    inodes = {p.name: p.stat().st_ino for p in store.glob("*.parquet") if p != damaged}
    run_here(workspace, "--repair")
    out = capsys.readouterr().err
    assert "part-00003.parquet is damaged" in out and "8 of 9 shards are already complete" in out
    assert contents(workspace) == contents(local)
    assert read_json(workspace / "reports/cost/extract-original.json")["rows_made"] == 200
    assert inodes == {name: (store / name).stat().st_ino for name in inodes}


@pytest.mark.slow
def test_torchrun_makes_the_same_bytes(local, tmp_path):
    workspace = lay_out(tmp_path)
    port = str(free_port())
    ranks = [
        start(workspace, STAGE, RANK=str(r), WORLD_SIZE="2", LOCAL_RANK=str(r), LOCAL_WORLD_SIZE="2",
              MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        for r in range(2)
    ]  # fmt: skip
    outs = [finish(rank) for rank in ranks]
    assert "rank 0 of 2: 997 images" in outs[0] and "rank 1 of 2: 800 images" in outs[1]
    assert contents(workspace) == contents(local)
    assert read_json(workspace / "reports/cost/extract-original.json")["engine"] == "torchrun, 2 processes"


def test_a_rank_keeps_one_gpu():
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Torchrun.of(environment) == Torchrun(5, 8, 4)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1"
    environment |= {"CUDA_VISIBLE_DEVICES": "4,6", "LOCAL_RANK": "1"}
    Torchrun.of(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == "6"
    alone = {}
    assert Torchrun.of(alone) == Torchrun(0, 1, 1) and alone == {}


@pytest.fixture(scope="module")
def slower(tmp_path_factory) -> Path:
    workspace = lay_out(tmp_path_factory.mktemp("slower"), SLOWER)
    finish(start(workspace, STAGE))
    return workspace


def kill_after_the_first_shard(workspace: Path, pid: int) -> None:
    """Kill that worker once the first of nine shards exists, so that it dies in the middle of work on any machine."""
    while not any(workspace.rglob("part-*.parquet")):
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)


def kill_a_worker(process: subprocess.Popen, workspace: Path) -> tuple[list[int], str]:
    """Read what the stage prints, and have one of its workers killed once they are ready.

    Returns the killed process in a list, and all that was printed.
    """
    lines, killed = [], []
    for line in process.stdout:
        lines.append(line)
        if not killed and (ready := re.search(r"Ray workers ready, process (\d+), (\d+)", line)):
            killed.append(int(ready[2]))
            threading.Thread(target=kill_after_the_first_shard, args=(workspace, killed[0]), daemon=True).start()
    process.wait(timeout=300)
    assert process.returncode == 0, "".join(lines)[-3000:]
    return killed, "".join(lines)


@pytest.mark.slow
def test_ray_makes_the_same_bytes_although_a_worker_is_killed(slower, tmp_path):
    pytest.importorskip("ray")
    workspace = lay_out(tmp_path, SLOWER, engine="ray", workers=2)
    with start(workspace, STAGE) as process:
        killed, out = kill_a_worker(process, workspace)
    assert len(killed) == 1 and "a worker was lost" in out
    assert contents(workspace) == contents(slower)


NODES = """
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=1)
print("address", cluster.address, flush=True)
input()
cluster.shutdown()
"""


@pytest.mark.slow
def test_ray_joins_a_running_cluster(local, tmp_path):
    """The cluster has two nodes on loopback in place of two machines, and lets in who has its token."""
    pytest.importorskip("ray")
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", NODES], env={**ENVIRONMENT, **token}, **pipes) as nodes:
        address = next(line.split()[1] for line in nodes.stdout if line.startswith("address "))
        workspace = lay_out(tmp_path, engine="ray", address=address)
        refused = start(workspace, STAGE, RAY_AUTH_MODE="disabled").communicate(timeout=300)[0]
        out = finish(start(workspace, STAGE, **token))
        nodes.communicate("\n", timeout=300)
    assert "2 Ray workers: 1,797 images" in out
    assert contents(workspace) == contents(local)
    assert f"error: extract.address: the Ray cluster at '{address}' cannot be joined" in refused
    assert "give this machine the same file and set RAY_AUTH_MODE=token" in refused


def test_an_address_without_a_ray_cluster_is_refused():
    pytest.importorskip("ray")
    for address in ("127.0.0.1:1", "nowhere"):
        with pytest.raises(ConfigError, match=f"no Ray cluster answers at '{address}'"):
            check_address(address)
