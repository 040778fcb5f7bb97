"""All registered claims, and what the records decide of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..records import Record, names, recorded
from . import methods, pgd_training, precision, readouts_and_cures, sample_size, usual_training
from .cells import Point
from .verdicts import Finding

#: Every registered claim in words, by number.
CLAIMS = {
    number: words
    for run in (usual_training, pgd_training, sample_size, readouts_and_cures, methods, precision)
    for number, words in run.CLAIMS.items()
}


#: The experiments of the registered runs, in order.
RUNS = ("usual-training", "pgd-training", "sample-size", "readouts-and-cures", "methods", "precision")


def recorded_runs() -> dict[tuple[str, str], tuple[Record, list[Point]]]:
    """The committed records of the registered runs: (experiment, data set) to header and points."""
    found = {}
    for experiment in RUNS:
        for name in names():
            if name.startswith(f"{experiment}-"):
                found[experiment, name.removeprefix(f"{experiment}-")] = recorded(name)
    return found


def of_experiments(records: Mapping[tuple[str, str], tuple[Record, list[Point]]]) -> dict[str, list[Point]]:
    """The points by experiment, of all data sets together, as :func:`findings` takes them."""
    points: dict[str, list[Point]] = {}
    for (experiment, _), (_, own) in records.items():
        points.setdefault(experiment, []).extend(own)
    return points


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
