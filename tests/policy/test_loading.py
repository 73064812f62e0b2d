"""What loading asks of the process: memory that stays, vector functions that are set up once, a precision."""

import ctypes
import os
import subprocess
import sys

import pytest
import torch

from clp_lightning.policy.loading import hardware_dtype


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc's allocator")
def test_memory_that_is_kept_is_not_taken_page_by_page_again():
    code = """
import resource, sys, torch
from clp_lightning.policy.loading import keep_freed_memory
kept = sys.argv[1] == "kept" and keep_freed_memory()
assert kept == (sys.argv[1] == "kept")
for number in range(40):
    if number == 20: before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(4_000_000) + torch.ones(9_000_000)[:4_000_000]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc's first value, which it may raise

    def faults(mode: str) -> int:
        command = [sys.executable, "-c", code, mode]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    # 20 times 68 MB are 332,000 pages of 4 KB, or 660 of 2 MB where the kernel gives huge ones. Of the 20 before them up to
    # 6 make the heap larger: glibc's aligned allocation finds no room in a free block of just the size asked for
    assert faults("kept") < 0.01 * faults("returned")


def test_hardware_dtype_is_one_that_torch_computes():
    assert hardware_dtype() in (torch.bfloat16, torch.float32)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process of its own for each first call, in a tenth of a second")
def test_the_first_cosine_of_a_process_is_that_of_the_next():
    # without the preparation about 1 process in 100 differs where MKL's first call is made by two threads (docs/log.md)
    code = """
import os, torch
from clp_lightning.policy.loading import prepare_vector_math
differing = 0
for _ in range(400):
    child = os.fork()  # of a process that has computed nothing yet
    if child == 0:
        torch.ones(256, 576) @ torch.ones(576, 1536)  # wakes the threads
        prepare_vector_math()
        x = 0.001 * torch.arange(4096.0)  # just enough for two of them
        first, second = torch.stack([x.cos(), x.sin()]), torch.stack([x.cos(), x.sin()])
        os._exit(0 if torch.equal(first, second) else 7)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 7), status
    differing += status == 7
print(differing)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert int(result.stdout) == 0
