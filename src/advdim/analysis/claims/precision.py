"""The check of training in bfloat16 against float32."""

from __future__ import annotations

from collections.abc import Sequence

from .cells import Cells, Point, at_end, gather, less, log
from .verdicts import Finding, PerSeed, finding, is_zero

#: The claim, in the README's words.
CLAIMS = {"6a": "Training in bfloat16 gives the gradients of training in float32"}
#: Seeds registered; strengths of PGD training, 0 for usual training.
SEEDS, STRENGTHS = 3, (0.0, 0.0005)


def runs(points: Sequence[Point], strength: float, *, bf16: bool) -> Cells:
    """The runs of one strength in one precision."""
    return gather(points, lambda spec: bool(spec["recipe"]["strength"] == strength and spec["recipe"]["bf16"] == bf16))


def findings(points: Sequence[Point]) -> list[Finding]:
    """Log ratio of the mean gradient norms on test images, at each strength."""
    found = []
    for strength in STRENGTHS:
        half, full = (_norms(runs(points, strength, bf16=bf16)) for bf16 in (True, False))
        about = f"PGD {strength:g}" if strength else "usual training"
        what = "log ratio of E||g||_1, bfloat16 to float32"
        found.append(finding("6a", about, what, less(half, full), is_zero(), m=len(STRENGTHS), planned=SEEDS))
    return found


def _norms(cells: Cells) -> PerSeed:
    values = {seed: log(at_end("test", "l1"))(point) for (seed, _), point in cells.items()}
    return {seed: value for seed, value in values.items() if value is not None}
