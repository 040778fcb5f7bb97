"""The memory of freed tensors is kept: later ones cost few page faults."""

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource
import torch
from advdim.models.fast import malloc
torch.set_num_threads(1)

def faults():
    torch.ones(40 * 2**18)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mebibytes in (36, 40, 33, 40):
        torch.ones(mebibytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

left = faults()
print(json.dumps([left, malloc.keep_memory(), faults()]))
"""


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is set")
def test_large_tensors_find_their_memory_there():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, env={})
    left, agreed, kept = json.loads(run.stdout)
    assert agreed is True
    assert kept < left / 5


def test_where_there_is_no_glibc_nothing_changes(monkeypatch):
    from advdim.models.fast import malloc

    monkeypatch.setattr(sys, "platform", "darwin")
    assert malloc.keep_memory() is False
