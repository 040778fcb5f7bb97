"""Experiments: specifications, the grids of the book's figures, running them, storing and recording their results."""

from .store import recorded

__all__ = ["recorded"]
