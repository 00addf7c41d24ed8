import subprocess
import sys

import pytest

from blockwise.fast import memory

PROGRAM = """
import os, resource, torch
from blockwise.fast.memory import freed_memory_kept

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def faults():
    # 64 MB, again and again: without the setting, each time from the kernel; with it, until there is room enough
    rounds = []
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return sum(rounds[6:])

default, before = faults(), resident()
with freed_memory_kept():
    kept, inside = faults(), resident()
print(default, kept, inside - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
@pytest.mark.slow
def test_freed_memory_is_used_again_and_returned_behind_the_context():
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    default, kept, inside, behind = map(int, ran.stdout.split())
    assert kept < 0.5 * default
    assert inside > 5e7
    assert behind < 2e7


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a file of Linux")
def test_the_peak_of_an_earlier_run_is_not_that_of_the_next():
    memory.reset_peak_memory()
    before = memory.peak_memory_bytes()
    earlier = bytearray(2**28)
    assert memory.peak_memory_bytes() > before + 2**27
    del earlier
    memory.reset_peak_memory()
    assert memory.peak_memory_bytes() < before + 2**27
