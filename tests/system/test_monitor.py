"""Test the monitor of a process, whose samples of processor time and memory must show real work."""

import hashlib
import json
import subprocess
import sys
import time

from expunge.system.monitor import MOST, ResourceMonitor


def test_the_monitor_measures_processor_time_and_memory():
    monitor = ResourceMonitor(interval=0.05).start()
    began = time.time()
    held_out = bytearray(80_000_000)
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        hashlib.sha256(held_out).digest()  # hashlib releases the GIL, as torch and numpy do.
    series = monitor.series()
    assert len(held_out) and series.keys() == {"cpu_percent_of_one_core", "process_memory_megabytes"}
    cpu, memory = series["cpu_percent_of_one_core"], series["process_memory_megabytes"]
    assert len(cpu["time"]) == len(cpu["value"]) >= 3
    assert max(cpu["value"]) > 20 and max(memory["value"]) > 80
    assert cpu["time"] == sorted(cpu["time"]) and began - 1 < cpu["time"][0] < time.time()


def test_a_long_stage_keeps_few_samples():
    monitor = ResourceMonitor(interval=0.001).start()
    time.sleep(1.0)
    assert 1 < len(monitor.series()["process_memory_megabytes"]["value"]) < MOST


def test_a_stage_keeps_its_samples_with_its_cost(tmp_path):
    code = (
        "import time; from expunge.stages import run; from expunge.system.monitor import write_cost\n"
        "run(lambda: (time.sleep({}), write_cost('train', {{'train_s': 1.0}})))"
    )
    for seconds, sampled in ((1.3, True), (0.0, False)):
        subprocess.run([sys.executable, "-c", code.format(seconds)], cwd=tmp_path, check=True)
        cost = json.loads((tmp_path / "reports/cost/train.json").read_text())
        assert cost["train_s"] == 1.0 and ("usage" in cost) == sampled
        start, end = cost["span"]
        # Both ends are rounded to a tenth of a second.
        assert seconds - 0.11 <= end - start < seconds + 30 and abs(time.time() - end) < 60


def test_a_clock_that_jumps_changes_no_length_of_a_stage(tmp_path):
    code = (
        "import time; from expunge.system import monitor\n"
        "monitor.start(); now = time.time; time.time = lambda: now() - 86_400\n"
        "monitor.write_cost('train', {})"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    start, end = json.loads((tmp_path / "reports/cost/train.json").read_text())["span"]
    assert 0 <= end - start < 60
