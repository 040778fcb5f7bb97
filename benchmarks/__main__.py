"""`python -m benchmarks`: advdim beside other libraries and a plain loop, in one run; see --help."""

from __future__ import annotations

import argparse
import copy
import functools
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet18

import advdim as ad

from . import plain, rivals
from .timing import Flops, Row, lines, side_by_side, synchronise

EPS = 0.004  # of the paper's attacks, in pixel units per pixel
STEPS = 10
PARTS = ("attacks", "gradients", "training")
METHODS = {
    "4.1": ("none", "pgd-linf", "augment-linf", "gradient-l1", "gradient-l2"),
    "4.2": ("none", "pgd-linf"),
    "resnet18": ("none",),
}
BATCH = {"4.1": 128, "4.2": 32, "resnet18": 128}  # of the first two, the paper's
LR = 0.05
#: By attack and norm, whom it is compared with.
COMPARED = {
    ("one step", "linf"): ("Foolbox", "Foolbox bare"),
    ("one step", "l2"): ("Foolbox", "Foolbox bare"),
    ("PGD", "linf"): ("Foolbox", "ART", "torchattacks", "adv-lib"),
    ("PGD", "l2"): ("Foolbox", "ART", "torchattacks"),
    ("DeepFool", "l2"): ("Foolbox", "adv-lib", "adv-lib DDN"),
    ("DeepFool", "linf"): ("Foolbox", "adv-lib"),
}


def main(arguments: list[str] | None = None) -> None:
    """Time, and print the table."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument("--nets", nargs="+", choices=list(BATCH), default=list(BATCH), help="of the paper's sections")
    parser.add_argument("--kinds", nargs="+", choices=("one step", "PGD", "DeepFool"), help="of attacks (default: all)")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS["4.1"], help="of training (default: those with a target)"
    )
    parser.add_argument("--images", type=int, default=128, help="attacked and measured")
    parser.add_argument("--train-images", type=int, default=1024, help="in an epoch of the 4.1 net; 4.2: half of them")
    parser.add_argument("--warm-up", type=int, default=8000, help="images on which the attacked nets are trained first")
    parser.add_argument("--repeats", type=int, default=5, help="of each timing")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images for the plain loop")
    parser.add_argument("--float32", action="store_true", help="train without bfloat16 (as on CPUs without AVX-512)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu or cuda")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # for all contestants
    elif not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        options.float32 = True  # without instructions for it, bfloat16 is several times slower
    print(header(options), flush=True)
    if gone := rivals.missing():
        print(f"left out, cannot be imported: {', '.join(gone)} (make bench installs them)", flush=True)
    x, y, source = images(options.warm_up + options.train_images + options.images)
    print(f"images: {source}", flush=True)
    rows: list[Row] = []
    for row in run(options, x, y):
        rows.append(row)
        print(lines([row])[1], flush=True)
    print("", *lines(rows), "", sep="\n")


def run(options: argparse.Namespace, x: Tensor, y: Tensor) -> Iterator[Row]:
    """The comparisons asked for, on uint8 images x [N, 3, 32, 32] and labels y [N]."""
    warm, train, attacked = torch.split(torch.arange(len(x)), [options.warm_up, options.train_images, options.images])
    for section in options.nets:
        fresh = network(section, x).to(options.device)
        wanted = options.parts or PARTS
        if set(wanted) & {"attacks", "gradients"}:
            net = copy.deepcopy(fresh)
            recipe = ad.train.Recipe(epochs=1, batch_size=BATCH[section], lr=0.05, bf16=not options.float32)
            ad.train.fit(net, x[warm], y[warm], recipe, progress=False, eval_images=1)
            ad.models.calibrate_batch_norm(net, (x[warm[:256]] / 255).to(options.device))  # the running ones lag behind
            clean, labels = (x[attacked] / 255).to(options.device), y[attacked].to(options.device)
        if "attacks" in wanted:
            yield from attacks(section, net, clean, labels, options)
        if "gradients" in wanted:
            yield from gradients(section, net, clean, labels, options)
        if "training" in wanted:
            part = train[: options.train_images // (1 if section == "4.1" else 2)]
            yield from training(section, fresh, (x[part], y[part]), (x[attacked], y[attacked]), options)


def attacks(section: str, net: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """One step, PGD and DeepFool, clipped to [0, 1] as the other libraries clip."""
    sizes = {"linf": (math.inf, EPS), "l2": (2.0, ad.norms.threshold(EPS, 2, x[0].numel()))}
    adapters = {
        "Foolbox": rivals.foolbox,
        "Foolbox bare": partial(rivals.foolbox, bare=True),
        "ART": rivals.art,
        "torchattacks": rivals.torchattacks,
        "adv-lib": rivals.adv_lib,
        "adv-lib DDN": partial(rivals.adv_lib, ddn=True),  # another attack: how near an image can be
    }
    absent = rivals.missing()
    for kind in dict.fromkeys(kind for kind, _ in COMPARED if kind in (options.kinds or kind)):
        for norm in (norm for other, norm in COMPARED if other == kind):
            p, eps = sizes[norm]
            ours: Callable[[], Tensor] = {
                "one step": lambda p=p, eps=eps: ad.attacks.one_step(net, x, y, p=p, eps=eps, clip=True),
                "PGD": lambda p=p, eps=eps: ad.attacks.pgd(net, x, y, p=p, eps=eps, steps=STEPS, clip=True),
                "DeepFool": lambda p=p: ad.attacks.deepfool(net, x, y, p=p, clip=True),
            }[kind]
            names = [name for name in COMPARED[kind, norm] if name not in absent]
            steps = 50 if kind == "DeepFool" else STEPS
            theirs = {name: adapters[name](copy.deepcopy(net), kind, p, eps, steps) for name in names}
            contestants = {"": ours} | {name: (lambda a=attack: a(x, y)) for name, attack in theirs.items()}
            seconds = side_by_side(contestants, options.repeats, options.device)
            for name, attack in theirs.items():
                work = f"{success(net, x, y, ours(), p)} | {success(net, x, y, attack(x, y), p)}"
                yield Row(section, f"{kind} {norm}", name, seconds[""], seconds[name], work)


def success(net: nn.Module, x: Tensor, y: Tensor, attacked: Tensor, p: float) -> str:
    """Share of images classified wrong, their mean loss, and the median norm of what was added to those once right."""
    right = ad.measure.outputs(net, x).argmax(1) == y
    outputs = ad.measure.outputs(net, attacked)
    wrong, loss = (outputs.argmax(1) != y).double().mean(), F.cross_entropy(outputs, y)
    added = (attacked - x)[right].flatten(1).norm(p, dim=1)
    size = f"l2 {float(added.median()):.3f}" if p == 2 else f"linf {float(added.median()):.5f}"
    return f"wrong {100 * float(wrong):.1f}%, loss {float(loss):.3f}, {size}"


def gradients(section: str, net: nn.Module, x: Tensor, y: Tensor, options: argparse.Namespace) -> Iterator[Row]:
    """Norms of the input gradients, q = 1 and 2."""
    ways = {
        "": lambda: ad.measure.gradient_norms(net, x, y),
        "one by one": lambda: rivals.norms_one_by_one(net, x, y),
        "one by one, backward()": lambda: rivals.norms_one_by_one(net, x, y, backward=True),
        "vmap(grad)": lambda: rivals.norms_by_vmap(net, x, y),
    }
    seconds = side_by_side(ways, options.repeats, options.device)
    means = {name: f"mean l1 {float(way()[1].mean()):.4g}" for name, way in ways.items()}
    for name in ("one by one", "one by one, backward()", "vmap(grad)"):
        yield Row(section, "gradient norms", name, seconds[""], seconds[name], f"{means['']} | {means[name]}")


def training(
    section: str,
    fresh: nn.Module,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    options: argparse.Namespace,
) -> Iterator[Row]:
    """One epoch from the same weights, with the loss and the accuracy reached on the same images."""
    x, y = train
    recipe = ad.train.Recipe(epochs=1, batch_size=BATCH[section], lr=LR, augment=True, bf16=not options.float32)
    for method in options.methods or METHODS[section]:
        strength = 0.0 if method == "none" else EPS
        trained = {}

        def ours(method: str = method, strength: float = strength, trained: dict[str, nn.Module] = trained) -> None:
            net = trained["ours"] = copy.deepcopy(fresh)
            fitted = replace(recipe, method=method, strength=strength)
            ad.train.fit(net, x, y, fitted, progress=False, eval_images=max(1, len(x) // 50))

        def theirs(method: str = method, strength: float = strength, trained: dict[str, nn.Module] = trained) -> None:
            net = trained["theirs"] = copy.deepcopy(fresh)
            asked = {"method": method, "strength": strength, "lr": LR, "workers": options.workers}
            plain.train(net, x, y, batch_size=BATCH[section], **asked)

        seconds = side_by_side({"": ours, "plain loop": theirs}, options.repeats, options.device)
        work = " | ".join(reached(trained[who], *train, *test) for who in ("ours", "theirs"))
        with Flops() as counted:
            ours()
        dtype = torch.float32 if options.float32 else torch.bfloat16
        part = counted.total / min(seconds[""]) / roofline(options.device, dtype)
        work += f" ({100 * part:.0f}% of the {str(dtype).removeprefix('torch.')} roofline)"
        yield Row(section, f"train {method}", "plain loop", seconds[""], seconds["plain loop"], work)


def reached(net: nn.Module, x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor) -> str:
    """Loss on the images trained on, and accuracy on others."""
    device = next(net.parameters()).device
    x, y, x_test, y_test = (t.to(device) for t in (x / 255, y, x_test / 255, y_test))
    ad.models.calibrate_batch_norm(net, x[:256])  # the running statistics lag behind after so few steps
    loss = float(F.cross_entropy(ad.measure.outputs(net, x), y))
    right = (ad.measure.outputs(net, x_test).argmax(1) == y_test).double()
    return f"loss {loss:.2f}, accuracy {100 * float(right.mean()):.0f}%"


@functools.cache
def roofline(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a large matrix product, the best of three."""
    n = 8192 if device.type == "cuda" else 512
    a = torch.randn(n, n, dtype=dtype, device=device)
    best = math.inf
    for _ in range(3):
        synchronise(device)
        start = time.perf_counter()
        a @ a
        synchronise(device)
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def network(section: str, x: Tensor) -> nn.Module:
    """The paper's net of a section, or torchvision's ResNet-18; batch-norms calibrated on images x [N, 3, 32, 32]."""
    if section == "resnet18":
        torch.manual_seed(0)
        net = resnet18(num_classes=10)
        net.image_shape, net.classes = (3, 32, 32), 10  # as our networks say themselves
        ad.models.calibrate_batch_norm(net, x[:64] / 255)
        return net
    build = {"init": "he_unit", "batch_norm": True}
    if section == "4.1":
        net = ad.models.build("conv_strided", (3, 32, 32), normalise="batch", **build)
    else:
        pixels = x.transpose(0, 1).flatten(1) / 255
        net = ad.models.build("conv_dilated", (3, 32, 32), normalise=(pixels.mean(1), pixels.std(1)), **build)
    ad.models.calibrate_batch_norm(net, x[:64] / 255)
    return net


def images(n: int) -> tuple[Tensor, Tensor, str]:
    """Images [n, 3, 32, 32], uint8, and labels: CIFAR-10 from the data root, or else the digits, enlarged."""
    for name in ("cifar10", "cifar10-jpeg"):
        try:
            x, y = ad.data.load(name, "train", n=n)
        except (OSError, ValueError):  # not in the data root
            continue
        return (x * 255).round().to(torch.uint8), y, name
    x, y = ad.data.load("digits", "train", size=32, resize="bilinear")
    again = torch.arange(n) % len(x)
    return (x[again] * 255).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), y[again], "digits, 32 px, grey"


def header(options: argparse.Namespace) -> str:
    """What the timings depend on."""
    device = options.device
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        where = f"{platform.machine()}, {os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    allocator = ", ".join(
        f"{name}={os.environ.get(name, 'unset')}" for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")
    )
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    return f"{where}; {versions}; {torch.get_num_threads()} threads; {allocator}"


if __name__ == "__main__":
    sys.exit(main())
