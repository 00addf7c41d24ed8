import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from blockwise.fast.memory import keep_freed_memory
{call}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
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

    # 256 MB, again and again: without the call, each time from the kernel; with it, once there is room enough, never
    assert faults("keep_freed_memory()") < 0.5 * faults("")
