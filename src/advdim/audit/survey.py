"""Many fresh networks, audited alike: torchvision's architectures, what theory says of each, and the record of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..analysis import PowerLaw, exponent, records
from . import verdict
from .cells import Cell
from .plan import FRESH
from .result import Audit, of_medians

SIZES, SMALL = (32, 64, 128, 224), (32, 64, 128)

#: How the last maps become logits.
READOUTS = (
    "average",  # over all places
    "windows",  # averages over a fixed number of windows, which overlap on small maps; then dense layers
    "average, then norm",  # a layer norm, which gives back what averaging has taken from the features
    "class token",  # attention decides what comes from where
)


@dataclass(frozen=True)
class Architecture:
    """A network of the survey.

    Attributes:
        spec: its name, as the command line takes it: ``torchvision:resnet18``, say.
        sizes: in pixels, increasing; None for the audit's own choice.
        readout: how the last maps become logits, one of READOUTS; empty where nobody has looked.
        sides: of the last maps, one per size, in places.
        windows: how many windows a side, of a readout by windows.
        randomise_head: whether its last layer comes as zeros, and is drawn anew.
    """

    spec: str
    sizes: tuple[int, ...] | None = SIZES
    readout: str = "average"
    sides: tuple[int, ...] = (1, 2, 4, 7)
    windows: int = 1
    randomise_head: bool = False

    @property
    def name(self) -> str:
        """What stands behind the colon."""
        return self.spec.rpartition(":")[2]

    @property
    def law(self) -> tuple[float, float] | None:
        """Between what the exponent of the l_1 norm lies if all but the readout pass on the gradient's length.

        Windows of areas A_1 to A_m, whose averages get independent gradients, multiply its mean square by the mean of
        1 / A_i. For one average over all places this is the paper's law less one half; a layer norm after it gives back
        between nothing, if the features at all places agree, and that half, if they are independent.
        """
        if self.readout not in READOUTS[:3] or self.sizes is None:
            return None
        passed = [_mean_inverse(side, self.windows) for side in self.sides]  # of one dimension: squared, of two
        lengths = [size * share for size, share in zip(self.sizes, passed, strict=True)]
        least = exponent([size**2 for size in self.sizes], lengths).slope
        return least, 0.5 if self.readout == "average, then norm" else least


def _mean_inverse(side: int, windows: int) -> float:
    """The mean over adaptive windows of 1 / length."""
    ends = [(i * side // windows, -(-(i + 1) * side // windows)) for i in range(windows)]
    return fmean(1 / (end - start) for start, end in ends)


def _torchvision(name: str, *args: Any, **keywords: Any) -> Architecture:
    return Architecture(f"torchvision:{name}", *args, **keywords)


#: What is recorded, the cheapest first; the larger ones at three sizes.
ARCHITECTURES: tuple[Architecture, ...] = (
    _torchvision("mobilenet_v3_small"),
    _torchvision("alexnet", (64, 128, 224), "windows", (1, 3, 6), 6),  # it takes no less than 63 px
    _torchvision("squeezenet1_1", sides=(1, 3, 7, 13)),
    _torchvision("shufflenet_v2_x1_0"),
    *(_torchvision(name, SMALL, sides=(1, 2, 4)) for name in ("mnasnet1_0", "mobilenet_v2", "regnet_y_400mf")),
    *(_torchvision(name, SMALL, sides=(1, 2, 4)) for name in ("efficientnet_b0", "resnet18")),
    _torchvision("convnext_tiny", SMALL, "average, then norm", (1, 2, 4)),
    *(_torchvision(name, SMALL, sides=(1, 2, 4)) for name in ("swin_t", "googlenet", "densenet121", "resnet50")),
    _torchvision("vit_b_16", SMALL, "class token", (2, 4, 8), randomise_head=True),
    _torchvision("vgg11_bn", SMALL, "windows", (1, 2, 4), 7),
)


def points(architecture: Architecture, found: Audit, data: str, checksum: str, provenance: records.Record) -> list[Any]:
    """An audit as points of a record, one per size: norms image by image, and means of them at the boundaries."""
    out = []
    for row in found.rows:
        cells = sorted((cell for cell in found.cells if cell.size == row.size), key=lambda cell: cell.seed)
        metrics: dict[str, Any] = {
            "l_1": [cell.values["l_q"] for cell in cells],
            "l_2": [fmean(cell.values["l_2"]) for cell in cells],
            # A list: in a record, names are sorted.
            "boundaries": [[name, [fmean(c.boundaries[name]) for c in cells]] for name in cells[0].boundaries],
        }
        if found.counted is not None:
            metrics["counted"] = [cell.counted for cell in cells]
        spec = {
            "experiment": "architectures",
            "network": architecture.spec,
            "size": row.size,
            "images": {"data": data, "n": len(cells[0].values["l_q"])},
            "method": {name: found.settings[name] for name in ("calibration", "resize", "classes")},
            "notes": [note for note in found.notes if note.startswith("!")],
        }
        out.append(
            {"status": "done", "spec": spec, "metrics": metrics, "data": checksum, "provenance": dict(provenance)}
        )
    return out


def audits(found: Iterable[records.Record]) -> list[tuple[Architecture, Audit]]:
    """The points of a record as audits again, by network, in the order of ARCHITECTURES and then of the names."""
    by_spec: dict[str, list[records.Record]] = {}
    for point in found:
        by_spec.setdefault(point["spec"]["network"], []).append(point)
    known = {architecture.spec: i for i, architecture in enumerate(ARCHITECTURES)}
    order = sorted(by_spec, key=lambda spec: (known.get(spec, len(known)), spec))
    return [_audit(sorted(by_spec[spec], key=lambda point: int(point["spec"]["size"]))) for spec in order]


def recorded(name: str = "architectures-imagenette-224") -> list[tuple[Architecture, Audit]]:
    """The audits of a record that is committed with the package."""
    return audits(records.recorded(name)[1])


def _audit(of: Sequence[records.Record]) -> tuple[Architecture, Audit]:
    first = of[0]["spec"]
    sizes = [point["spec"]["size"] for point in of]
    cells = []
    for point in of:
        m = point["metrics"]
        for seed, l_1 in enumerate(m["l_1"]):
            boundaries = {name: [values[seed]] for name, values in m["boundaries"]}
            counted = m["counted"][seed] if "counted" in m else None
            values = {"l_q": list(l_1), "l_2": [m["l_2"][seed]]}
            cells.append(Cell(point["spec"]["size"], seed, values, boundaries, counted=counted))
    settings = {**first["method"], "p": math.inf, "q": 1.0, "eps": 1.0, "images": first["images"]["n"], "sizes": sizes}
    notes = list(dict.fromkeys(note for point in of for note in point["spec"]["notes"]))
    own = Architecture(first["network"], tuple(sizes), "")
    architecture = next((a for a in ARCHITECTURES if (a.spec, a.sizes) == (own.spec, own.sizes)), own)
    found = verdict.concluded(FRESH, architecture.name, first["images"]["data"], cells, settings, notes)
    return architecture, found


def table(found: Sequence[tuple[Architecture, Audit]]) -> str:
    """One line per network: its readout, the law with that readout's step, and the exponent with its interval."""
    names = f"{'network':18} {'readout':18} {'px':>7} {'law':>12}"
    lines = [f"{names}  {'exponent':>20}   {'of medians':>20}  paths"]
    for architecture, audit in found:
        if audit.exponent is None:
            continue
        counted = "" if audit.counted is None else f"{audit.counted.slope:+.2f}"
        bent, medians = "*" if audit.power_law is False else " ", of_medians(audit)
        middle = "" if medians is None else _interval(medians)
        px = f"{audit.rows[0].size}-{audit.rows[-1].size}"
        line = f"{architecture.name:18} {architecture.readout:18} {px:>7} {_range(architecture.law):>12}  "
        line += f"{_interval(audit.exponent):>20}{bent}  {middle:>20}  {counted:>5}"
        lines.append(line.rstrip())
    return "\n".join([*lines, "* no power law: the slopes between neighbouring sizes differ beyond noise"])


def _interval(law: PowerLaw) -> str:
    return f"{law.slope:+.2f}" + ("" if math.isnan(law.low) else f" [{law.low:.2f}, {law.high:.2f}]")


def _range(law: tuple[float, float] | None) -> str:
    if law is None:
        return "not covered"
    low, high = (abs(bound) if abs(bound) < 0.005 else bound for bound in law)  # no -0.00
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def draw(found: Sequence[tuple[Architecture, Audit]], ax: Any, most: float = 1.3) -> None:
    """Draw exponents with their intervals, one network per row, beside the law and what path counting says.

    Args:
        found: networks and their audits.
        ax: the axes.
        most: exponents beyond it are written at the edge.
    """
    rows = [(architecture, audit, audit.exponent) for architecture, audit in found if audit.exponent is not None]
    for i, (architecture, audit, e) in enumerate(rows):
        if architecture.law is not None:
            low, high = architecture.law
            ax.plot([low - 0.02, high + 0.02], [i, i], color="0.8", linewidth=10, solid_capstyle="butt", zorder=1)
        for law, marker, colour, up in ((e, "o", "C0", -0.15), (of_medians(audit), "s", "C1", 0.15)):
            if law is None:
                continue
            if abs(law.slope) > most:
                ax.text(most, i + up, f"{law.slope:.2f} →", color=colour, ha="right", va="center", fontsize=8)
                continue
            interval = [[law.slope - law.low], [law.high - law.slope]]
            ax.errorbar(law.slope, i + up, xerr=interval, fmt=marker, color=colour, markersize=4, zorder=3)
        if audit.counted is not None:
            ax.plot(audit.counted.slope, i, "D", color="C3", markersize=6, fillstyle="none", zorder=2)
    for x in (0, 0.5):
        ax.axvline(x, color="0.5", linestyle=":", linewidth=0.8, zorder=0)
    ax.set_yticks(range(len(rows)), [architecture.name for architecture, _, _ in rows], fontsize=8)
    ax.set_xlim(-most - 0.2, most + 0.05)
    ax.invert_yaxis()
    ax.plot([], [], color="0.8", linewidth=10, label="the law, with the readout")
    ax.plot([], [], "o", color="C0", markersize=4, label="mean over images, 95%")
    ax.plot([], [], "s", color="C1", markersize=4, label="median over images")
    ax.plot([], [], "D", color="C3", markersize=6, fillstyle="none", label="path counting")
    ax.legend(fontsize=8, loc="lower left")
    ax.set_xlabel("exponent of the gradient's $\\ell_1$ norm in the number of pixels")
