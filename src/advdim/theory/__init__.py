"""The theory of section 3 made executable: l_p norms, path counting, and which assumptions a network meets."""

from . import norms
from .assumptions import Assumption, Assumptions, check_assumptions
from .path_counting import open_gate_shares, path_second_moment, predicted_norms

__all__ = [
    "Assumption",
    "Assumptions",
    "check_assumptions",
    "norms",
    "open_gate_shares",
    "path_second_moment",
    "predicted_norms",
]
