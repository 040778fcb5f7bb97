"""The audit of anybody's network over image sizes: exponent, layer budget, verdict."""

from .adapt import Refusal
from .api import audit
from .cells import Cell
from .layers import Budget, Term
from .result import Audit, Row

__all__ = ["Audit", "Budget", "Cell", "Refusal", "Row", "Term", "audit"]
