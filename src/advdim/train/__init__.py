"""Training: the objectives of section 4.1, and one loop for all of them."""

from . import objectives
from .augment import crop_and_flip
from .loop import fit
from .recipe import PAPER, Recipe
from .result import DivergenceError, Result

__all__ = ["PAPER", "DivergenceError", "Recipe", "Result", "crop_and_flip", "fit", "objectives"]
