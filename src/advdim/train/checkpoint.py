"""The file from which an interrupted training run resumes: written whole or not at all, and refused to another run."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.atomic import writing
from ..data.layout import require_file

MAGIC = b"advdim checkpoint, sha256 "  # begins the file; then the checksum of all behind the end of this line

Content = dict[str, Any]  # tensors, numbers, strings, and lists and dictionaries of them


class DamagedCheckpointError(ValueError):
    """A file that is no whole, unchanged checkpoint; the message names it."""


def identity(settings: Content, model: nn.Module, tensors: dict[str, Tensor]) -> Content:
    """What tells a run from others: its settings, and hashes of the model, weights included, and of each tensor."""
    parts = {"model": _digest(repr(model), *model.state_dict().values())}
    return {"settings": settings, "hashes": parts | {name: _digest("", t) for name, t in tensors.items()}}


def save(path: Path, identity: Content, content: Content) -> None:
    """Write a checkpoint atomically: whatever happens, the file is there whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: a killed run leaves at most one, which the next one writes over.
    with writing(path, beside=path.with_name(path.name + ".tmp")) as file:
        payload = io.BytesIO()
        torch.save({"identity": identity, "content": content}, payload)
        file.write(MAGIC + hashlib.sha256(payload.getbuffer()).hexdigest().encode() + b"\n")
        file.write(payload.getbuffer())


def load(path: Path, identity: Content) -> Content | None:
    """The content of a checkpoint, tensors on the CPU, or None if there is no file.

    Raises:
        DamagedCheckpointError: if the file is no checkpoint, cut short, or a bit of it has changed.
        ValueError: if it is of another run; the message names it and the difference.
    """
    try:
        require_file(path)
        first, _, payload = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise DamagedCheckpointError(str(error)) from error
    try:
        if first != MAGIC + hashlib.sha256(payload).hexdigest().encode():
            raise ValueError("its checksum is another, or it has none")
        found = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        theirs, content = found["identity"], found["content"]
        settings, hashes = theirs["settings"], theirs["hashes"]
    except Exception as error:  # from what is no file of its own, torch raises whatever it stumbles over
        reason = str(error).partition("\n")[0][:80]
        raise DamagedCheckpointError(
            f"{path} is no readable checkpoint ({reason}): delete it to train from the start"
        ) from error
    different = _differences(settings, identity["settings"])
    different += [f"another {name}" for name in _differing(hashes, identity["hashes"])]
    if different:
        raise ValueError(
            f"{path} is the checkpoint of another run ({'; '.join(different)}). To resume, give the same recipe and "
            "data, and the model freshly built as before; for a new run, name another file"
        )
    return dict(content)


def _differing(theirs: Content, ours: Content) -> list[str]:
    return [name for name in {**theirs, **ours} if name not in theirs or name not in ours or theirs[name] != ours[name]]


def _differences(theirs: Content, ours: Content) -> list[str]:
    names = _differing(theirs, ours)
    return [f"{name} = {theirs.get(name, 'unknown')!r} there and {ours.get(name, 'unknown')!r} here" for name in names]


def _digest(text: str, *tensors: Tensor) -> str:
    digest = hashlib.sha256(text.encode())
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
