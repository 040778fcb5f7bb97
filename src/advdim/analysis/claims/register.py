"""All registered claims, and what the records decide of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import methods, pgd_training, precision, readouts_and_cures, sample_size, usual_training
from .cells import Point
from .verdicts import Finding

#: Every registered claim in words, by number.
CLAIMS = {
    number: words
    for run in (usual_training, pgd_training, sample_size, readouts_and_cures, methods, precision)
    for number, words in run.CLAIMS.items()
}


def findings(points: Mapping[str, Sequence[Point]]) -> list[Finding]:
    """Every registered statistic with its verdict, in order of the claims.

    Args:
        points: name of an experiment, as "usual-training", to the points of its records, of all data sets; one that is
            missing was not run.
    """
    usual = points.get("usual-training", ())
    return [
        *usual_training.findings(usual),
        *pgd_training.findings(points.get("pgd-training", ())),
        *sample_size.findings(points.get("sample-size", ())),
        *readouts_and_cures.findings(points.get("readouts-and-cures", ()), usual),
        *methods.findings(points.get("methods", ())),
        *precision.findings(points.get("precision", ())),
    ]
