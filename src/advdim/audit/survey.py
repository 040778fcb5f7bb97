"""Many fresh networks, audited alike: torchvision's architectures, what theory says of each, and the record of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ..analysis import exponent, records
from . import result, verdict
from .cells import Cell
from .plan import FRESH
from .result import Audit

SIZES = (32, 64, 128, 224)

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
        spec: as :func:`advdim.audit.specs.factory` takes it.
        sizes: in pixels, increasing; None for the audit's own choice.
        readout: one of :data:`READOUTS`; empty where nobody has looked.
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
    def law(self) -> float | None:
        """The exponent of the l_1 norm if all but the readout pass on the gradient's length whatever the size.

        Windows of areas A_1 to A_m, whose averages get independent gradients, multiply its mean square by the mean of
        1 / A_i. For one average over all places this is the paper's law less the average's one half.
        """
        if self.readout not in ("average", "windows") or self.sizes is None:
            return None
        passed = [_mean_inverse(side, self.windows) for side in self.sides]  # of one dimension: squared, of two
        lengths = [size * share for size, share in zip(self.sizes, passed, strict=True)]
        return exponent([size**2 for size in self.sizes], lengths).slope


def _mean_inverse(side: int, windows: int) -> float:
    """The mean over adaptive windows of 1 / length."""
    ends = [(i * side // windows, -(-(i + 1) * side // windows)) for i in range(windows)]
    return fmean(1 / (end - start) for start, end in ends)


def _torchvision(name: str, *args: Any, **keywords: Any) -> Architecture:
    return Architecture(f"torchvision:{name}", *args, **keywords)


#: What is recorded, the cheapest first.
ARCHITECTURES: tuple[Architecture, ...] = (
    _torchvision("mobilenet_v3_small"),
    _torchvision("alexnet", (64, 128, 224), "windows", (1, 3, 6), 6),  # it takes no less than 63 px
    _torchvision("squeezenet1_1", sides=(1, 3, 7, 13)),
    _torchvision("shufflenet_v2_x1_0"),
    _torchvision("mnasnet1_0"),
    _torchvision("mobilenet_v2"),
    _torchvision("regnet_y_400mf"),
    _torchvision("efficientnet_b0"),
    _torchvision("resnet18"),
    _torchvision("googlenet"),
    _torchvision("densenet121"),
    _torchvision("swin_t"),
    _torchvision("convnext_tiny", readout="average, then norm"),
    _torchvision("resnet50"),
    _torchvision("vgg11_bn", readout="windows", windows=7),
    _torchvision("vit_b_16", readout="class token", sides=(2, 4, 8, 14), randomise_head=True),
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
    seeds = sorted({cell.seed for cell in cells})
    settings = {**first["method"], "p": float("inf"), "q": 1.0, "images": first["images"]["n"]}
    settings |= {"sizes": sizes, "seeds": seeds}
    own = Architecture(first["network"], tuple(sizes), "")
    architecture = next((a for a in ARCHITECTURES if (a.spec, a.sizes) == (own.spec, own.sizes)), own)
    rows = result.rows_of(cells, sizes, 0.0)
    law, clean, parts, notes = result.fit(cells, sizes, 3, FRESH, 1.0)
    said = verdict.verdict(FRESH, rows, law, clean, parts, cells, settings)
    notes = [*dict.fromkeys(note for point in of for note in point["spec"]["notes"]), *notes]
    counted_law = result.counted(cells, sizes, 3)
    name, data = architecture.name, first["images"]["data"]
    whole = (FRESH, name, data, rows, law, clean, parts, counted_law, tuple(notes), said, settings, True, tuple(cells))
    return architecture, Audit(*whole)


def table(found: Sequence[tuple[Architecture, Audit]]) -> str:
    """One line per network: its readout, the law with that readout's step, and the exponent with its interval."""
    head = (
        f"{'network':20} {'readout':19} {'sizes':>8}  {'law':>5}  {'measured exponent':>20}  {'paths':>5}  largest step"
    )
    lines = [head]
    for architecture, audit in found:
        e, law = audit.exponent, architecture.law
        if e is None or audit.budget is None:
            continue
        steps = [term for term in audit.budget.terms if term.name != "pixels"]
        largest = max(steps, key=lambda term: abs(term.exponent))
        sizes = f"{audit.rows[0].size}-{audit.rows[-1].size}"
        counted = "" if audit.counted is None else f"{audit.counted.slope:+.2f}"
        interval = f"{e.slope:+.2f} [{e.low:.2f}, {e.high:.2f}]{' ' if audit.power_law is not False else '*'}"
        lines.append(
            f"{architecture.name:20} {architecture.readout:19} {sizes:>8}  {'' if law is None else f'{law:.2f}':>5}  "
            f"{interval:>20}  {counted:>5}  {largest.exponent:+.2f} {largest.name}"
        )
    return "\n".join([*lines, "* no power law: the slopes between neighbouring sizes differ beyond noise"])
