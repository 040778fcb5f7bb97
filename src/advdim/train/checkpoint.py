"""The file from which an interrupted training run resumes: written whole or not at all, and refused to another run."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..data.atomic import writing

Content = dict[str, Any]  # tensors, numbers, strings, and lists and dictionaries of them


def identity(settings: Content, model: nn.Module, tensors: dict[str, Tensor]) -> Content:
    """What tells a run from others: its settings, and hashes of the model, weights included, and of each tensor."""
    parts = {"model": _digest(repr(model), *model.state_dict().values())}
    return {"settings": settings, "hashes": parts | {name: _digest("", t) for name, t in tensors.items()}}


def save(path: Path, identity: Content, content: Content) -> None:
    """Write a checkpoint atomically: whatever happens, the file is there whole or as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Always the same name: a killed run leaves at most one, which the next one writes over.
    with writing(path, beside=path.with_name(path.name + ".tmp")) as file:
        torch.save({"identity": identity, "content": content}, file)


def load(path: Path, identity: Content) -> Content | None:
    """The content of a checkpoint, tensors on the CPU, or None if there is no file.

    Raises:
        ValueError: if the file is no checkpoint, cut short, or of another run; the message names it and the difference.
    """
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
        theirs, content = found["identity"], found["content"]
        settings, hashes = theirs["settings"], theirs["hashes"]
    except Exception as error:  # from what is no file of its own, torch raises whatever it stumbles over
        raise ValueError(f"{path} is no readable checkpoint: delete it to train from the start") from error
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
