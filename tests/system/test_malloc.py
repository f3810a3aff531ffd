"""Test that `keep_freed` lets glibc keep freed memory, so that allocating as much again causes no page faults."""

import subprocess
import sys

import pytest

ROUNDS, MB, PAGES_PER_MB = 20, 64, 256
CODE = f"""
import resource, sys
import numpy as np
if sys.argv[1] == "kept":
    from expunge.system.malloc import keep_freed
    keep_freed()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def use():
    layers = [np.empty({MB // 4} * 2**20, np.uint8) for _ in range(4)]
    for layer in layers:
        layer[::4096] = 1
use()
before = faults()
for _ in range({ROUNDS}):
    use()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_used_again_without_page_faults():
    def faults(which: str) -> int:
        return int(subprocess.run([sys.executable, "-c", CODE, which], check=True, capture_output=True).stdout)

    assert faults("kept") < MB * PAGES_PER_MB / 10 < ROUNDS * MB * PAGES_PER_MB / 100 < faults("returned")
