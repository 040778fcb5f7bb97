"""What comes out of measurements: power laws, single curves, ratios, tables of records, figures."""

from . import figures
from .power_law import PowerLaw, exponent
from .records import recorded
from .single_curve import GeometricMeanRatio, SingleCurveFit, fit_single_curve, geometric_mean_ratio
from .tables import Series, epochs, exponents, runs, series

__all__ = [
    "GeometricMeanRatio",
    "PowerLaw",
    "Series",
    "SingleCurveFit",
    "epochs",
    "exponent",
    "exponents",
    "figures",
    "fit_single_curve",
    "geometric_mean_ratio",
    "recorded",
    "runs",
    "series",
]
