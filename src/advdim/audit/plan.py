"""What is to be audited: which network for each size and seed, and what question that asks."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..data.layout import require_file
from .adapt import Function, Refusal

FRESH, CHECKPOINT, TRAINED = "fresh", "one checkpoint", "trained per size"

#: Arguments by which a factory may take the size of the images, in pixels.
SIZE_ARGUMENTS = ("size", "img_size", "image_size", "side")


@dataclass(frozen=True)
class Plan:
    """The networks of an audit.

    Attributes:
        question: "fresh", "one checkpoint" or "trained per size".
        name: of the network.
        build: (size, seed) to the network.
        own: whether ``build`` gives a network that nobody else has.
        sizes: those there are networks for, or None if any may be asked for.
        seeds: likewise.
        sized: whether the factory is told the size.
    """

    question: str
    name: str
    build: Callable[[int, int], nn.Module]
    own: bool
    sizes: tuple[int, ...] | None = None
    seeds: tuple[int, ...] | None = None
    sized: bool = False


def plan(make: Any, *, weights: str | Path = "fresh", size_arg: str | None = None, native: int = 0) -> Plan:
    """Sort out what was given.

    Args:
        make: a factory, a dict {size: factory}, a module, or a dict {(size, seed): module}.
        weights: "fresh", or a file of weights for the networks that the factory makes.
        size_arg: the argument by which the factory takes the size; default whichever of size, img_size, image_size and
            side it has.
        native: side of the images before resizing, at which a factory builds the network of a checkpoint.
    """
    if isinstance(make, nn.Module):
        if weights != "fresh":
            make = load_weights(make, weights)
        return Plan(CHECKPOINT, type(make).__name__, lambda size, seed: make, own=False, seeds=(0,))
    if isinstance(make, Mapping) and make:
        return _of_mapping(make, weights, size_arg)
    if not callable(make):
        raise Refusal(f"expected a module, a factory of modules or a dict of them, got {type(make).__name__}")
    given = _arguments(make, size_arg)
    name = getattr(make, "__name__", type(make).__name__)
    if weights == "fresh":
        return Plan(
            FRESH, name, lambda size, seed: call(make, given, size, seed), own=True, sized=given["size"] is not None
        )
    module = load_weights(call(make, given, native, 0), weights)
    return Plan(CHECKPOINT, name, lambda size, seed: module, own=False, seeds=(0,))


def _of_mapping(make: Mapping[Any, Any], weights: str | Path, size_arg: str | None) -> Plan:
    if weights != "fresh":
        raise Refusal("weights go with one factory: of several networks, give the trained modules themselves")
    if all(isinstance(m, nn.Module) for m in make.values()):
        modules = {key if isinstance(key, tuple) else (key, 0): m for key, m in make.items()}
        if not all(len(key) == 2 and all(isinstance(part, int) for part in key) for key in modules):
            raise Refusal(f"trained networks are named by (size, seed), got {next(iter(make))!r}")
        sizes = tuple(sorted({size for size, _ in modules}))
        seeds = tuple(sorted({seed for _, seed in modules}))
        missing = [(size, seed) for size in sizes for seed in seeds if (size, seed) not in modules]
        if missing:
            raise Refusal(f"there is no network for (size, seed) = {missing[0]}: every seed needs one at every size")
        name = type(next(iter(modules.values()))).__name__
        return Plan(TRAINED, name, lambda size, seed: modules[size, seed], own=False, sizes=sizes, seeds=seeds)
    if not all(callable(f) and isinstance(size, int) and not isinstance(f, nn.Module) for size, f in make.items()):
        raise Refusal("expected a dict {size: factory}, or a dict {(size, seed): module}")
    given = {size: _arguments(f, size_arg) for size, f in make.items()}
    name = getattr(next(iter(make.values())), "__name__", "network")
    return Plan(
        FRESH,
        name,
        lambda size, seed: call(make[size], given[size], size, seed),
        own=True,
        sizes=tuple(sorted(make)),
        sized=True,
    )


def _arguments(factory: Callable[..., Any], size_arg: str | None) -> dict[str, str | None]:
    """By which arguments a factory takes the size and the seed."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some built-in callables have none
        return {"size": size_arg, "seed": None}
    size = size_arg or next((name for name in SIZE_ARGUMENTS if name in parameters), None)
    needed = [
        name
        for name, p in parameters.items()
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and name not in (size, "seed")
    ]
    if needed:
        raise Refusal(
            f"the factory {getattr(factory, '__name__', factory)} needs {', '.join(needed)}: it is called with "
            f"whichever of seed and {', '.join(SIZE_ARGUMENTS)} it takes. Name the size by size_arg=, or wrap it in a "
            "lambda; a function of images is given as lambda: function"
        )
    return {"size": size, "seed": "seed" if "seed" in parameters else None}


def call(factory: Callable[..., Any], given: dict[str, str | None], size: int, seed: int) -> nn.Module:
    """The network of a factory, drawn with torch's generator seeded, which is put back as it was."""
    values = {"size": size, "seed": seed}
    keywords = {name: values[what] for what, name in given.items() if name is not None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = factory(**keywords)
    if isinstance(made, nn.Module):
        return made
    if callable(made):
        return Function(made)
    raise Refusal(f"the factory gave a {type(made).__name__}, expected a torch.nn.Module")


def _damaged(path: str | Path) -> str | None:
    """What in a file of torch's has another checksum than its zip archive says; torch.load compares none."""
    if not zipfile.is_zipfile(path):  # as of old versions
        return None
    with zipfile.ZipFile(path) as file:
        return file.testzip()


def load_weights(model: nn.Module, path: str | Path) -> nn.Module:
    """Put the weights of a file into a model, without running any code that the file may hold."""
    try:
        require_file(Path(path))
    except ValueError as error:  # a folder, or a pipe
        raise Refusal(f"cannot read the weights {path}: {error}") from error
    except OSError as error:
        raise Refusal(f"cannot read the weights {path}: {error.strerror or error}") from error
    try:
        if damaged := _damaged(path):
            raise Refusal(f"{path} is damaged: {damaged} in it is not what was written")
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Refusal:
        raise
    except OSError as error:
        raise Refusal(f"cannot read the weights {path}: {error.strerror or error}") from error
    except Exception as error:  # torch raises whatever it stumbles over
        reason = str(error).split("\n")[0].split(". ")[0]
        raise Refusal(
            f"{path} holds no plain weights ({type(error).__name__}: {reason}); pickled code is never run. Save the "
            "weights alone, with torch.save(model.state_dict(), ...)"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise Refusal(f"{path} holds a {type(found).__name__}, expected a state_dict")
    weights = {str(name).removeprefix("module."): value for name, value in found.items()}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()]
        raise Refusal(
            f"the weights of {path} do not fit {type(model).__name__}: {' '.join(lines[1:3]) or lines[0]}"
        ) from error
    return model
