"""Networks by name, as the command line gives them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from .adapt import Refusal

FORMS = "torchvision:NAME, timm:NAME, package.module:factory or file.py:factory"


def factory(spec: str) -> Callable[..., Any]:
    """The factory, or the module, that a text names.

    Args:
        spec: ``torchvision:resnet18``, ``timm:NAME`` (needs timm), ``package.module:factory`` or ``file.py:factory``.
            The last two run code: name only files that you trust.

    Raises:
        Refusal: if there is none of that name.
    """
    source, colon, name = spec.rpartition(":")
    if not colon or not source or not name:
        raise Refusal(f"a network is named {FORMS}; got {spec!r}")
    if source == "torchvision":
        return _torchvision(name)
    if source == "timm":
        return _timm(name)
    module = _file(Path(source)) if source.endswith(".py") else _module(source)
    found = getattr(module, name, None)
    if found is None:
        there = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise Refusal(f"{source} has no {name!r}; there are {', '.join(sorted(there)[:20]) or 'no functions'}")
    return found  # type: ignore[no-any-return]


def _torchvision(name: str) -> Callable[..., Any]:
    from torchvision import models

    if name not in models.list_models(module=models):
        near = [n for n in models.list_models(module=models) if n[:4] == name[:4]]
        raise Refusal(f"torchvision has no classifier {name!r}; near it: {', '.join(near) or 'none'}")
    builder = models.get_model_builder(name)
    keywords: dict[str, Any] = {"weights": None}
    if "init_weights" in inspect.signature(builder).parameters:
        keywords["init_weights"] = True
    if name in ("googlenet", "inception_v3"):
        keywords |= {"init_weights": False, "aux_logits": False}  # their own draw takes minutes
    # What torchvision hides behind **kwargs, given a name, so that it is found.
    return _sized(builder, keywords) if name.startswith("vit_") else _named(partial(builder, **keywords), name)


def _sized(builder: Callable[..., Any], keywords: dict[str, Any]) -> Callable[..., Any]:
    def make(image_size: int) -> Any:
        return builder(image_size=image_size, **keywords)

    return _named(make, builder.__name__)


def _named(make: Any, name: str) -> Callable[..., Any]:
    make.__name__ = name
    return make  # type: ignore[no-any-return]


def _timm(name: str) -> Callable[..., Any]:
    try:
        timm = importlib.import_module("timm")
    except ImportError as error:
        raise Refusal("timm is not installed: pip install timm") from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:8])
        raise Refusal(f"timm has no model {name!r}; near it: {near or 'none'}")
    try:  # only some take the size
        timm.create_model(name, pretrained=False, img_size=224)
    except TypeError:
        return _named(partial(timm.create_model, name, pretrained=False), name)

    def make(img_size: int) -> Any:
        return timm.create_model(name, pretrained=False, img_size=img_size)

    return _named(make, name)


def _file(path: Path) -> Any:
    if not path.is_file():
        raise Refusal(f"there is no file {path}")
    name = f"_audited_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Refusal(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles look there
    sys.path.insert(0, str(path.parent.absolute()))  # as python FILE does, for what the file imports
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Refusal(f"{path} fails when run: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.parent.absolute()))
    return module


def _module(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Refusal(f"cannot import {name}: {error}. A network is named {FORMS}") from error
    finally:
        sys.path.remove(str(Path.cwd()))
