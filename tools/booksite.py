"""Sphinx extension of the book: MathJax served from the site itself, and the preface counted as chapter 1."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx_external_toc.collectors import TocTreeCollectorWithStyles

#: What the pages need, out of the 24 MB that the package sphinx-mathjax-offline carries.
MATHJAX_PARTS = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")


def _copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("sphinx-mathjax-offline is not installed; run `make book`, which installs it")
    source = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "mathjax"
    for part in MATHJAX_PARTS:
        (target / part).parent.mkdir(parents=True, exist_ok=True)
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, dirs_exist_ok=True)
        else:
            shutil.copy2(source / part, target / part)


Numbers = dict[str, tuple[int, ...] | None]


def _shifted(number: Sequence[int] | None) -> tuple[int, ...] | None:
    return (number[0] + 1, *number[1:]) if number else None


def _count_the_preface(env: BuildEnvironment) -> None:
    """Numbers the root document 1 and moves every other chapter on by one, so that chapter 2 is the file 02_*.ipynb.

    Sphinx numbers what is listed in a numbered toctree, which the root document never is.
    """
    assigned: dict[str, Numbers] = env.toc_secnumbers  # type: ignore[assignment]  # a heading too deep has None
    for doc, numbers in assigned.items():
        assigned[doc] = {anchor: _shifted(number) for anchor, number in numbers.items()}
        env.titles[doc]["secnumber"] = _shifted(env.titles[doc].get("secnumber"))
        for reference in env.tocs[doc].findall(nodes.reference):
            reference["secnumber"] = _shifted(reference.get("secnumber"))
    root = env.config.root_doc
    title, *below = env.tocs[root][0].children
    sections = [item[0] for listed in below for item in listed.children if isinstance(item, nodes.list_item)]
    of_root: Numbers = {reference["anchorname"]: None for reference in env.tocs[root].findall(nodes.reference)}
    for number, paragraph in [((1,), title), *(((1, i), section) for i, section in enumerate(sections, 1))]:
        paragraph[0]["secnumber"] = number
        of_root[paragraph[0]["anchorname"]] = number
    assigned[root] = of_root
    env.titles[root]["secnumber"] = (1,)


def _name_the_preface(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    if "root_title" in context:
        context["root_title"] = f"1. {context['root_title']}"  # in the sidebar, above the other chapters' numbers


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.config.mathjax_path = "mathjax/tex-chtml-full.js"
    app.connect("build-finished", _copy_mathjax)
    app.connect("html-page-context", _name_the_preface, priority=900)
    assign: Callable[..., list[str]] = TocTreeCollectorWithStyles.assign_section_numbers

    def assign_section_numbers(self: TocTreeCollectorWithStyles, env: BuildEnvironment) -> list[str]:
        changed = assign(self, env)
        _count_the_preface(env)
        return changed

    TocTreeCollectorWithStyles.assign_section_numbers = assign_section_numbers  # type: ignore[method-assign]
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
