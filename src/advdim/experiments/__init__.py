"""Experiments: specifications, the grids of the book's figures, running and storing them."""

from ..analysis.records import recorded
from ..analysis.tables import Series, epochs, exponents, runs, series
from .here import measure_grid

__all__ = ["Series", "epochs", "exponents", "measure_grid", "recorded", "runs", "series"]
