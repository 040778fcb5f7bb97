"""The command ``advdim audit``."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def register(groups: Any) -> None:
    """Add the command to the program's."""
    parser = groups.add_parser(
        "audit",
        help="how a network's vulnerability grows with its input size, and which layers make it",
        description="Measure the gradients of a network over image sizes: the exponent, its layers' parts, a verdict.",
    )
    parser.add_argument(
        "spec",
        metavar="SPEC",
        help="torchvision:NAME, timm:NAME, package.module:factory or file.py:factory (the last two run that code)",
    )
    parser.add_argument("--data", required=True, metavar="DATA", help="a data set's name, or a folder CLASS/IMAGE")
    parser.add_argument("--weights", default="fresh", metavar="FILE", help="trained weights, a state_dict")
    parser.add_argument("--sizes", type=int, nargs="+", metavar="PX", help="default: up to four, halving from native")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="networks per size (default: 5)")
    parser.add_argument("--images", type=int, default=32, metavar="N", help="default: 32")
    parser.add_argument("--p", type=float, default=float("inf"), help="the attacker's norm (default: inf)")
    parser.add_argument(
        "--eps", type=float, default=1 / 255, help="size of the attack, pixels in [0, 1] (default: 1/255)"
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda or mps (default: the best at hand)")
    parser.add_argument("--dtype", choices=("float32", "float64", "bfloat16", "float16"), default="float32")
    parser.add_argument("--size-arg", metavar="NAME", help="the factory's argument for the size in pixels")
    parser.add_argument("--mean", type=float, nargs="+", metavar="M", help="per channel, subtracted from the images")
    parser.add_argument("--std", type=float, nargs="+", metavar="S", help="per channel, by which they are divided")
    parser.add_argument("--upsample", choices=("copy", "bilinear"), help="allow sizes above the images' own")
    parser.add_argument("--no-calibrate", action="store_true", help="leave fresh batch-norms as they are")
    parser.add_argument("--randomise-head", action="store_true", help="draw layers anew whose weights are all 0")
    parser.add_argument("--train", type=int, metavar="EPOCHS", help="train each network first, on the training split")
    parser.add_argument("--no-layers", action="store_true", help="no layer budget")
    parser.add_argument("--budget", type=float, metavar="SECONDS", help="begin nothing after that time")
    parser.add_argument(
        "--out", metavar="DIR", help="write audit.json, .csv, .png there; an interrupted audit goes on from there"
    )
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.set_defaults(command=run)


def run(arguments: argparse.Namespace) -> int:
    """Audit; 0 done, 2 refused (one line on stderr says why and names the cure), 130 interrupted."""
    import torch

    from ..audit import audit
    from ..audit.report import as_json, write
    from ..audit.specs import factory
    from ..train import Recipe

    try:
        found = audit(
            factory(arguments.spec),
            arguments.data,
            sizes=arguments.sizes,
            seeds=arguments.seeds,
            images=arguments.images,
            weights=arguments.weights,
            p=arguments.p,
            eps=arguments.eps,
            layers=not arguments.no_layers,
            device=arguments.device,
            dtype=getattr(torch, arguments.dtype),
            mean=arguments.mean,
            std=arguments.std,
            calibrate=False if arguments.no_calibrate else "auto",
            budget_s=arguments.budget,
            size_arg=arguments.size_arg,
            upsample=arguments.upsample,
            randomise_head=arguments.randomise_head,
            recipe=None if arguments.train is None else Recipe(epochs=arguments.train),
            out=arguments.out,
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
    except ValueError as refusal:  # a Refusal, or of an argument
        print("advdim:", " ".join(str(refusal).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "nothing is kept, for want of --out"
        if arguments.out:
            kept = f"what is done is kept in {arguments.out}, and the same command goes on from there"
        print(f"advdim: interrupted; {kept}", file=sys.stderr)
        return 130
    print(as_json(found) if arguments.json else found)
    if arguments.out:
        for path in write(found, arguments.out):
            print(path, file=sys.stderr)
    return 0 if found.complete or arguments.budget is not None else 130
