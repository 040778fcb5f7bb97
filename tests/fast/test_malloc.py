"""The memory of freed tensors is kept: later ones cost few page faults."""

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import json, resource, sys
import torch
from advdim.models.fast import malloc
torch.set_num_threads(1)
agreed = malloc.keep_memory() if sys.argv[1] == "keep" else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for mebibytes in (64, 40, 50, 40) * 5:
        torch.ones(mebibytes * 2**18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(json.dumps([agreed, faults()]))
"""


def faults(how, **environment):
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(run.stdout)


@pytest.mark.process
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is set")
def test_large_tensors_find_their_memory_there():
    agreed, kept = faults("keep")
    assert agreed is True
    _, left = faults("leave")
    assert kept < left / 5


def test_where_there_is_no_glibc_nothing_changes(monkeypatch):
    from advdim.models.fast import malloc

    monkeypatch.setattr(sys, "platform", "darwin")
    assert malloc.keep_memory() is False
