import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from blockwise.fast.memory import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
{call}
rounds = [faults() for _ in range(12)]
print(sum(rounds[6:]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_freed_memory_is_used_again():
    def faults(call):
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(call=call)], capture_output=True, text=True, check=True
        )
        return int(ran.stdout)

    # 64 MB, again and again: without the call, each time from the kernel; with it, only until there is room enough
    default = faults("")
    assert faults("keep_freed_memory()") < 0.5 * default


RETURNED = """
import os, torch
from blockwise.fast.memory import freed_memory_kept
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
before = resident()
with freed_memory_kept():
    for _ in range(12):
        torch.ones(2**24)
    inside = resident()
print(inside - before, resident() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of glibc")
def test_behind_the_context_memory_is_returned():
    ran = subprocess.run([sys.executable, "-c", RETURNED], capture_output=True, text=True, check=True)
    inside, behind = map(int, ran.stdout.split())
    assert inside > 5e7
    assert behind < 2e7
