"""Write the figure of the landing page: what one grey level per pixel does to networks before any training.

usage: hero.py            writes book/_static/figures/one-grey-level.html

A patch of a photograph that comes with scikit-learn, averaged down from 64 pixels a side, and a digit of its embedded
set, copied up from 8. Networks as they are born, one with all positions in its last layer and one with their average.
The label is the class that the network gives to the clean image: its loss rises as it changes its mind.
"""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits, load_sample_image

import advdim as ad
from advdim.analysis import interactive

PAGE = Path(__file__).resolve().parents[1] / "book" / "_static" / "figures" / "one-grey-level.html"
SIDES = (8, 16, 32, 64)
READOUTS = ("fc", "average")
SEEDS = 20
SHOWN = 1  # grey levels
DIGIT = 3  # its place in the set, and its class
CORNER = (60, 290)  # of the patch, 256 pixels a side, in china.jpg
ALT = (
    "A patch of a photograph at 64 by 64 pixels, the signs of a gradient magnified twenty times, and their sum, which "
    "looks like the photograph. Beside them: the loss of an untrained network rises along the dashed first-order line "
    "with the size of the attack, and signs at random leave it where it was."
)


def images() -> dict[str, torch.Tensor]:
    """The stored images, [C, side, side] in grey levels: the photograph at 64 pixels a side, the digit at 8."""
    top, left = CORNER
    patch = torch.tensor(load_sample_image("china.jpg")[top : top + 256, left : left + 256]).permute(2, 0, 1)
    photograph = patch.double().unflatten(2, (64, 4)).unflatten(1, (64, 4)).mean(dim=(2, 4)).round()
    digit = torch.tensor(load_digits().images[DIGIT]) * 255 / 16
    return {"photograph": photograph, "digit": digit.round()[None].double()}


def at(image: torch.Tensor, side: int) -> torch.Tensor:
    """A stored image at another size: [1, C, side, side] in [0, 1], averaged down or copied up."""
    stored = image.shape[-1]
    if side < stored:
        k = stored // side
        image = image.unflatten(2, (side, k)).unflatten(1, (side, k)).mean(dim=(2, 4))
    else:
        image = image.repeat_interleave(side // stored, 1).repeat_interleave(side // stored, 2)
    return image[None] / 255


def network(x: torch.Tensor, readout: str, seed: int) -> torch.nn.Module:
    """The network of the preface, in float64."""
    half = torch.full((x.shape[1],), 0.5)
    return ad.models.build(
        "conv_strided", image_shape=x.shape[1:], depth=3, width=32, readout=readout, normalise=(half, half), seed=seed
    ).double()


def along(net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, signs: torch.Tensor) -> dict[str, Any]:
    """Loss and class probabilities at 0 to 16 grey levels."""
    path = torch.cat([x + level / 255 * signs for level in range(17)])
    logits = ad.measure.outputs(net, path)
    losses = torch.nn.functional.cross_entropy(logits, y.expand(17), reduction="none")
    shares = (logits.softmax(1) * 255).round().to(torch.uint8)
    return {"loss": losses.tolist(), "shares": packed(shares.numpy().tobytes())}


def packed(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def bits(signs: torch.Tensor) -> str:
    return packed(np.packbits(signs.flatten().numpy() > 0).tobytes())


def compute() -> dict[str, Any]:
    """All that the figure draws."""
    found: dict[str, Any] = {"shown": SHOWN, "seeds": SEEDS, "images": {}, "cases": {}, "means": {}}
    for name, image in images().items():
        raw = image.to(torch.uint8).numpy().tobytes()
        found["images"][name] = {"channels": image.shape[0], "side": image.shape[1], "data": packed(raw)}
        found["cases"][name] = {}
        slopes: dict[str, list[float]] = {readout: [] for readout in READOUTS}
        for side in SIDES:
            x = at(image, side)
            draw = torch.randint(2, x.shape, generator=torch.Generator().manual_seed(side)).double() * 2 - 1
            case: dict[str, Any] = {"random": bits(draw)}
            for readout in READOUTS:
                sizes = []
                for seed in range(SEEDS):
                    net = network(x, readout, seed)
                    y = ad.measure.outputs(net, x).argmax(1)
                    g = ad.measure.input_gradients(net, x, y)
                    sizes.append(g.abs().sum().item() / 255)
                    if seed == 0:
                        signs = torch.where(g > 0, 1.0, -1.0).double()
                        case[readout] = {"label": y.item(), "slope": sizes[0], "signs": bits(signs)}
                        case[readout]["gradient"] = along(net, x, y, signs)
                        case[readout]["random"] = along(net, x, y, draw)
                slopes[readout].append(sum(sizes) / SEEDS)
            found["cases"][name][str(side)] = case
        found["means"][name] = slopes
    return found


def _png(values: torch.Tensor) -> str:
    stream = io.BytesIO()
    pixels = values[0].permute(1, 2, 0).clamp(0, 255).round().to(torch.uint8).numpy()
    Image.fromarray(pixels).save(stream, "png", optimize=True)
    return f"data:image/png;base64,{packed(stream.getvalue())}"


def still(found: dict[str, Any]) -> str:
    """The picture without a script: the photograph at 64 pixels, and its loss."""
    own = found["cases"]["photograph"]["64"]["fc"]
    x = at(images()["photograph"], 64) * 255
    signs = np.unpackbits(np.frombuffer(base64.b64decode(own["signs"]), np.uint8))[: x.numel()] * 2.0 - 1
    delta = SHOWN * torch.tensor(signs).reshape(x.shape)
    panels = [("the image", x), ("20 times the perturbation", 127.5 + 20 * delta), ("the attacked image", x + delta)]
    parts = ['<svg viewBox="0 0 720 440" xmlns="http://www.w3.org/2000/svg">']
    for place, (words, values) in enumerate(panels):
        left = 242 * place
        parts.append(
            f'<image x="{left}" y="0" width="230" height="230" style="image-rendering:pixelated" '
            f'href="{_png(values)}"/>'
            f'<text x="{left}" y="248">{words}</text>'
        )
    first, top = own["gradient"]["loss"][0], own["gradient"]["loss"][16] - own["gradient"]["loss"][0]
    for name, colour in (("gradient", "var(--hot)"), ("random", "var(--soft)")):
        points = " ".join(
            f"{60 + 30 * level},{410 - 120 * (loss - first) / top:.1f}" for level, loss in enumerate(own[name]["loss"])
        )
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
    reach = min(16.0, 1.1 * top / own["slope"])
    parts.append(
        f'<line x1="60" y1="410" x2="{60 + 30 * reach:.1f}" y2="{410 - 120 * reach * own["slope"] / top:.1f}" '
        'stroke="currentColor" stroke-dasharray="5 4"/>'
        f'<text x="0" y="294">+{top:.1f}</text><text x="30" y="415">0</text>'
        '<text x="548" y="292">signs of the gradient</text><text x="548" y="408">signs at random</text>'
        '<text x="60" y="432">rise of the loss for 0 to 16 grey levels per pixel; dashed: to first order</text></svg>'
    )
    return "".join(parts)


def page(found: dict[str, Any]) -> str:
    """The file's text."""
    made = interactive.figure("one_grey_level", found, still(found), label=ALT, ident="fig-one-grey-level")
    return made.source + "\n"


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(interactive.rounded(compute())), encoding="utf-8")
    print(f"{PAGE.name}: {PAGE.stat().st_size} bytes")
