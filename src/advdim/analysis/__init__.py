"""What comes out of measurements: power laws, single curves, ratios, tables of records, figures."""

from . import figures, interactive, playgrounds
from .power_law import Interval, PowerLaw, exponent, exponent_difference, mean_interval
from .printed import Table, origin, table
from .records import recorded
from .single_curve import GeometricMeanRatio, SingleCurveFit, fit_single_curve, geometric_mean_ratio
from .tables import Series, epochs, exponents, runs, series

__all__ = [
    "GeometricMeanRatio",
    "Interval",
    "PowerLaw",
    "Series",
    "SingleCurveFit",
    "Table",
    "epochs",
    "exponent",
    "exponent_difference",
    "exponents",
    "figures",
    "fit_single_curve",
    "geometric_mean_ratio",
    "interactive",
    "mean_interval",
    "origin",
    "playgrounds",
    "recorded",
    "runs",
    "series",
    "table",
]
