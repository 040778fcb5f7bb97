"""The claims registered before the runs on trained networks, and what the records decide of them.

Claims, statistics and rules are in the README of ``advdim.experiments``; here is a module for each of its runs.
"""

from . import cells, methods, pgd_training, precision, readouts_and_cures, sample_size, usual_training, verdicts
from .register import CLAIMS, RUNS, findings, of_experiments, recorded_runs
from .verdicts import Finding

__all__ = [
    "CLAIMS",
    "RUNS",
    "Finding",
    "cells",
    "findings",
    "methods",
    "of_experiments",
    "pgd_training",
    "precision",
    "readouts_and_cures",
    "recorded_runs",
    "sample_size",
    "usual_training",
    "verdicts",
]
