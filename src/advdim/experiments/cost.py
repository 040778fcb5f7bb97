r"""What the points of an experiment cost: operations and bytes counted, and the least time that a GPU takes for them.

The count takes a training step and the passes of each measurement through the network, at full size, on PyTorch's meta
device, which has shapes and no numbers. Operations are multiplications and additions of the weight layers, the
convolutions and matrix products; batch-norm, ReLU, pooling and padding are free, as are the optimiser, augmentation and
the steps of DeepFool after the first. Bytes are counted twice. ``bytes`` are those of the weight layers alone: each
reads its operands and writes its results once, as if all that lies between them were fused into them. ``eager_bytes``
are those of all operators, one after the other, as PyTorch runs them, with nothing kept in a cache.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .. import models
from ..analysis.tables import runs
from ..measure.gradients import cross_entropy, input_gradient, outputs_at_leaf
from ..models import Network, fast
from ..train import Recipe, objectives
from .after_training import CALIBRATION, FIXED_EPS_ATTACKS, MIN_NORM_ATTACKS
from .spec import AfterTraining, Images, as_dict

if TYPE_CHECKING:
    import pandas as pd

#: Images of the data sets: channels, side in pixels, how many to train on and to test on.
IMAGES = {"digits": (1, 8, 1397, 400), "cifar10": (3, 32, 50_000, 10_000), "imagenette": (3, 224, 9_469, 3_925)}
#: An NVIDIA H100 SXM by its data sheet: operations per second, dense, and bytes per second from its memory.
OPERATIONS, BYTES = {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12}, 3.35e12
#: Eager bytes per second of one core of a CPU with AVX2 in float32, images of 32 to 128 px and 16 channels: of training
#: steps, and of passes through a network at rest. Timed twice; from one size to another they vary by half.
CORE_TRAINING, CORE_AT_REST = 2.3e9, 3.8e9
_STEP = "step of PGD"

#: Operations, numbers moved by weight layers, numbers moved by all operators, operators.
Count = NDArray[np.float64]


class OperatorCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Counts operations and numbers moved, of whatever runs meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count: Count = np.zeros(4)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator, and count it."""
        from torch.utils.flop_counter import flop_registry

        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            operations = flop_registry.get(func._overloadpacket)
            moved = _numbers((_read(func, args), kwargs, out))
            done = operations(*args, **(kwargs or {}), out_val=out) if operations else 0
            self.count += (done, moved if operations else 0, moved, 1)
        return out


def _read(func: Any, args: Any) -> Any:
    """The operands that an operator reads: a gradient of weights needs the maps, a gradient of maps the weights."""
    if func is torch.ops.aten.convolution_backward.default:
        (slopes, maps, weights), (of_maps, of_weights, _) = args[:3], args[10]
        return slopes, maps if of_weights else None, weights if of_maps else None
    return args


def _numbers(tree: Any) -> int:
    from torch.utils._pytree import tree_leaves

    return sum(t.numel() for t in tree_leaves(tree) if isinstance(t, Tensor) and t.is_floating_point())


@lru_cache(maxsize=1000)
def per_image(network: Network, channels: int, size: int, what: str, batch: int = 100) -> Count:
    """Count of one pass through a network, divided by the images of the batch.

    Args:
        network: the network.
        channels: of the images.
        size: of the images, side in pixels.
        what: a method of :data:`advdim.train.objectives.METHODS`, for a step of training; or, of a network at rest,
            "forward", "gradient" (forward, and back to the images) or "deepfool" (its first step, all other classes in
            play).
        batch: images at a time.

    Returns:
        Operations; numbers moved by the weight layers, and by all operators; and the number of operators.
    """
    if what == "pgd-linf":  # whose attack looks at its numbers: its steps, and then usual training
        parts = (per_image(network, channels, size, part, batch) for part in (_STEP, "none"))
        return np.array([objectives.PGD_STEPS, 1.0]) @ list(parts)
    shape = (channels, size, size)
    net: nn.Module = models.build(network, shape)
    if what in _AT_REST:
        with fast.at_rest(net.double()) as rest:  # in float32, layers may change for what a CPU is quick at
            net = copy.deepcopy(rest).float()
    else:
        net.train()
    x, y = torch.empty(batch, *shape, device="meta"), torch.zeros(batch, dtype=torch.long, device="meta")
    net.to("meta")
    counter = OperatorCounter()
    with counter:
        (_AT_REST.get(what) or partial(_step, method=what))(net, x, y)
    return counter.count / batch


def _step(net: nn.Module, x: Tensor, y: Tensor, method: str) -> None:
    if method == _STEP:
        with fast.at_rest(net) as still:
            input_gradient(still, x, y, cross_entropy)
        return
    strength = 0.0 if method == "none" else 1.0
    torch.autograd.backward(objectives.objective(method)(net, x, y, strength, torch.Generator()))


def _deepfool(net: nn.Module, x: Tensor, y: Tensor) -> None:
    leaf, outputs = outputs_at_leaf(net, x)
    for k in range(1, outputs.shape[1]):
        torch.autograd.grad(outputs[:, k].sum(), leaf, retain_graph=True)
    net(x)  # to see whether the prediction has changed


_AT_REST: dict[str, Callable[[nn.Module, Tensor, Tensor], object]] = {
    "forward": lambda net, x, y: net(x),
    "gradient": lambda net, x, y: input_gradient(net, x, y, cross_entropy),
    "deepfool": _deepfool,
}


def table(points: Iterable[AfterTraining | dict[str, Any]]) -> pd.DataFrame:
    """One row per training run, as :func:`advdim.analysis.runs` sorts them, with what it costs.

    Args:
        points: the specs of a grid; or records of points, with their ``provenance``.

    Returns:
        The columns of :func:`advdim.analysis.runs` that are settings, and ``operations``, ``bytes`` and
        ``eager_bytes``; on one H100, the least hours ``by_operations``, ``by_bytes`` and, as neither can be beaten,
        ``least``; of records, the ``hours`` that the point took, and its ``device``.

    Raises:
        ValueError: for a point of ``initialisation``, which trains nothing.
    """
    rows = []
    for point in points:
        record = {"spec": as_dict(point)} if isinstance(point, AfterTraining) else point
        costs: dict[str, Any] = _of_run(_spec(record["spec"]))
        if "provenance" in record:
            costs |= {"hours": record["provenance"]["seconds"] / 3600, "device": record["provenance"]["device"]}
        rows.append({"spec": record["spec"], "metrics": costs})
    return runs(rows)


def core_hours(points: Iterable[AfterTraining]) -> list[float]:
    """Hours that each training run is expected to take one core of a CPU, at most: as if none stopped early.

    Args:
        points: the specs of a grid.
    """
    hours = []
    for point in points:
        (_, training), *rest = _counts(point)
        seconds = training[2] / CORE_TRAINING + sum(float(count[2]) for _, count in rest) / CORE_AT_REST
        hours.append(4 * float(seconds) / 3600)
    return hours


def _spec(spec: dict[str, Any]) -> AfterTraining:
    if "recipe" not in spec:
        raise ValueError(f"costs are counted of training runs, and {spec.get('experiment')} has none")
    parts = {"images": Images(**spec["images"]), "network": Network(**spec["network"])}
    parts |= {name: tuple(value) for name, value in spec.items() if isinstance(value, list)}
    return AfterTraining(**{"train": None, **spec, **parts, "recipe": Recipe(**spec["recipe"])})


def _of_run(spec: AfterTraining) -> dict[str, float]:
    costs = dict.fromkeys(("operations", "bytes", "eager_bytes", "by_operations", "by_bytes", "least"), 0.0)
    for precision, (operations, numbers, eager, _) in _counts(spec):
        width = 2 if precision == "bf16" else 4  # bytes per number
        hours = operations / OPERATIONS[precision] / 3600, width * numbers / BYTES / 3600
        for name, cost in zip(costs, (operations, width * numbers, width * eager, *hours, max(hours)), strict=True):
            costs[name] += float(cost)
    return costs


def _counts(spec: AfterTraining) -> list[tuple[str, Count]]:
    """Counts of training, attacks and measurements, as in ``after_training.run``, with the arithmetic on a GPU."""
    images, recipe = spec.images, spec.recipe
    channels, side, train, test = next(IMAGES[kind] for kind in IMAGES if images.data.startswith(kind))
    train, test = spec.train or train, images.n or test
    held_out = round(recipe.validation * train)
    few_train, few_test = min(spec.by_epoch, train - held_out), min(spec.by_epoch, test)
    at, every = spec.at_epochs, spec.every or 1
    due = sum((e in at if at else e % every == 0) or e == recipe.epochs for e in range(1, recipe.epochs + 1))
    calibrated = max(recipe.batch_size, CALIBRATION) if isinstance(spec.eps, tuple) else recipe.batch_size
    calibrated = calibrated if spec.network.batch_norm or spec.network.normalise == "batch" else 0

    one = partial(per_image, spec.network, channels, images.size)
    forward, gradient = one("forward"), one("gradient")
    copied = images.resize == "copy" and images.size > side
    looks = few_test + due * (few_train + few_test)  # before training and by epoch: gradient norms, and PGD evaluated
    attacks = min(calibrated, train) * forward
    exact = recipe.epochs * held_out * forward
    if isinstance(spec.eps, tuple):
        exact = exact + looks * gradient + due * few_test * forward
        exact += (due * few_train if recipe.stop_accuracy is None else recipe.epochs * (train - held_out)) * forward
        exact += (min(train, test) + test) * (gradient + 2 * len(spec.eps) * forward)
        under_pgd = min(test if spec.pgd_images is None else spec.pgd_images, test)
        attacks = attacks + under_pgd * 2 * len(spec.eps) * 10 * gradient
        exact += under_pgd * (1 + 2 * len(spec.eps)) * forward
    else:
        exact = exact + looks * ((3 if copied else 2) * gradient + forward) + test * (gradient + forward)
        exact += due * (few_train + test) * forward  # accuracies
        attacks = attacks + looks * 10 * gradient
    named = (*FIXED_EPS_ATTACKS, *MIN_NORM_ATTACKS) if spec.attacks is None else spec.attacks
    for name in () if isinstance(spec.eps, tuple) else named:
        if name in MIN_NORM_ATTACKS:
            attacks, exact = attacks + test * one("deepfool"), exact + test * forward
        else:
            attacks = attacks + test * (10 if name.startswith("pgd") else 1) * gradient
            exact = exact + test * (gradient + (2 if name.endswith("linf") else 1) * forward)
    steps = recipe.epochs * sum(recipe.batch_sizes(train - held_out)) * one(recipe.method, recipe.batch_size)
    # By PyTorch's default, convolutions in float32 are in TF32; measurements turn that off.
    return [("bf16" if recipe.bf16 else "tf32", steps), ("tf32", attacks), ("fp32", exact)]
