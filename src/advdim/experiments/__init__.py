"""Experiments: specifications, the grids of the book's figures, running them, storing and recording their results."""

from .store import recorded
from .tables import Series, epochs, exponents, runs, series

__all__ = ["Series", "epochs", "exponents", "recorded", "runs", "series"]
