"""Where and when a number comes from."""

from __future__ import annotations

import datetime
import functools
import platform
import subprocess
from pathlib import Path

import torch

from ..analysis.records import Record


def provenance(device: torch.device) -> Record:
    """Where and when a number comes from: date, commit, device, versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{device.type}, {platform.machine()}, {torch.get_num_threads()} threads"
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": _loaded(),
        "device": name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


@functools.cache
def _loaded() -> str:
    """The commit when this process first asked: what is edited later does not run in it."""
    return _commit()


def _commit() -> str:
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        # A copy of the package in somebody else's checkout (a virtual environment, say) is none of its files.
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", str(here.parent)], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not run from a git checkout"
    return commit.stdout.strip() + (" with changes" if changed.stdout.strip() else "")
