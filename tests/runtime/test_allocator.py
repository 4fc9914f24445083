"""Memory that is freed and asked for again is there at once."""

import platform
import subprocess
import sys

import pytest

# How many pages the kernel had to bring for one step's worth of buffers, before and after.
STEPS = """
import resource
import numpy as np
from fedray.runtime.allocator import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffers = [np.ones(2**21, np.uint8) for _ in range(24)]
    del buffers
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

pages(), pages()
print(pages())
kept = keep_freed_memory()
pages(), pages()
print(pages(), kept)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_the_buffers_of_the_next_step_lie_where_those_of_the_last_did():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    fresh, again, kept = done.stdout.split()
    assert kept == "True"
    # 24 buffers of 2 MiB are 12288 pages of 4 KiB.
    assert int(fresh) > 10_000
    assert int(again) < 100
