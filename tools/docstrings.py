"""Sphinx extension of the book: docstrings as they are written here, with types in the signatures alone.

Napoleon takes what stands before the first colon of a Returns section, or of an attribute's comment, for a type.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx
from sphinx.ext.napoleon.docstring import GoogleDocstring


def _returns(self: GoogleDocstring, preprocess_types: bool = False) -> list[tuple[str, str, list[str]]]:
    lines = self._dedent(self._consume_to_next_section())
    return [("", "", GoogleDocstring(lines, self._config).lines())] if lines else []


def _attribute(self: GoogleDocstring) -> list[str]:
    return GoogleDocstring(self._dedent(self._consume_to_end()), self._config).lines()


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    GoogleDocstring._consume_returns_section = _returns  # type: ignore[method-assign]
    GoogleDocstring._parse_attribute_docstring = _attribute  # type: ignore[method-assign]
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
