"""The Python examples of a Markdown page, and what it says that they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

BLOCK = re.compile(r"^```(python|text)\n(.*?)^```$", flags=re.M | re.S)


def examples(page: str) -> list[tuple[str, str]]:
    """The blocks of Python, each with the block of text right after it, or with none."""
    blocks = BLOCK.findall(page)
    return [
        (code, shown if after == "text" else "")
        for (kind, code), (after, shown) in zip(blocks, [*blocks[1:], ("", "")], strict=True)
        if kind == "python"
    ]


def printed(code: str, names: dict[str, Any], page: Path) -> str:
    """What a block prints, run after those before it."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, str(page), "exec"), names)
    return out.getvalue()
