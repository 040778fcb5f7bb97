"""The memory of freed tensors is kept: later ones cost few page faults."""

import json
import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, resource
import torch
from advdim.models.fast import malloc
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mebibytes in (64, 40, 50, 40) * 5:
        torch.ones(mebibytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

child = os.fork()  # of two equal processes, one keeps its memory
agreed = malloc.keep_memory() if child else None
faults()
found = json.dumps([agreed, faults()])
if child:
    os.waitpid(child, 0)
print(found, flush=True)
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is set")
def test_large_tensors_find_their_memory_there():
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env=environment)
    (nothing, left), (agreed, kept) = map(json.loads, run.stdout.splitlines())
    assert nothing is None
    assert agreed is True
    assert kept < left / 5


def test_where_there_is_no_glibc_nothing_changes(monkeypatch):
    from advdim.models.fast import malloc

    monkeypatch.setattr(sys, "platform", "darwin")
    assert malloc.keep_memory() is False
