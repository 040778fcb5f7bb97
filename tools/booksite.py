"""Sphinx extension of the book: what the site serves itself, what it leaves out, what its pages say of themselves."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shutil
from html import escape
from pathlib import Path
from typing import Any

import bibliography
import nbformat
import repository
from bs4 import BeautifulSoup, Tag
from docutils import nodes
from sphinx.application import Sphinx

#: What the pages need, out of the 24 MB that the package sphinx-mathjax-offline carries.
MATHJAX_PARTS = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")

#: Alphabets that no formula of the book uses.
UNUSED_FONTS = ("Fraktur-*", "SansSerif-*", "Script-*", "Typewriter-*", "Calligraphic-Bold")

#: What the themes put into every site and no page of this one asks for.
UNUSED = ("**/*.map", "**/*.ttf", "locales", "scripts/fontawesome.js", "scripts/fontawesome.js.LICENSE.txt")

#: What a link can show of the place it leads to.
PREVIEWED = "div.proof[id], div.math[id], figure[id], div.citation[id], dl.glossary dt[id]"

#: What the themes and docutils say to screen readers, and what they should.
ROLES = (
    ('<summary><span class="toctree-toggle"', '<summary aria-label="pages of this part"><span class="toctree-toggle"'),
    ('role="doc-biblioentry"', 'role="listitem"'),  # the former is deprecated, and no child of a list
)

#: Parts of highlighted code that have the colour of the code around them: half of a listing's bytes.
PLAIN_CODE = re.compile(r'<span class="(?:n|nn|p|w)">([^<]*)</span>')

#: A formula, with the bracket before it and the punctuation behind it.
FORMULA = re.compile(
    r"([(\[\u201c]*)"
    r'(<span class="math notranslate nohighlight">\\\([^<]*\\\)</span>)'
    r"([.,;:!?)\]\u2019\u201d]*)"
)

#: The tables that cells show, and in them headings, captions and cells.
TABLE = re.compile(r'<table class="advdim-table">.*?</table>', re.DOTALL)
TABLE_TEXT = re.compile(r"(<(th|td|caption)\b[^>]*>)([^<]*)(?=</\2>)")

MINUS = "\u2212"
LONGEST = 32  # characters in a cell of a table that stay in one line

#: How the plain text of a table's headings is written on a page; numbers and intervals get
#: :data:`NUMBERS` alone.
GREEK = {"eps": "\u03b5", "tau": "\u03c4", "mu": "\u03bc", "theta": "\u03d1", "rho": "\u03c1", "beta": "\u03b2"}
GREEK |= {"omega": "\u03c9", "Omega": "\u03a9", "delta": "\u03b4"}
HEADINGS = (
    (re.compile(r"\|\|"), "\u2016"),
    (re.compile(r"\bgrad "), "\u2207"),
    (re.compile(r"\bsqrt\((\w)\)"), "\u221a\\1"),
    (re.compile(r"\bsqrt\("), "\u221a("),
    (re.compile(rf"\b({'|'.join(GREEK)})(?=_|\b)"), lambda found: GREEK[found[1]]),
    (re.compile(r"\bl_(?=inf|\d)"), "\u2113_"),
    (re.compile(r"(\u2016|(?<![a-zA-Z0-9_])[a-zA-Z\u03b1-\u03d1\u2113])_(inf|\w)(?!\w)"), r"\1<sub>\2</sub>"),
    (re.compile(r"(?<=[\w\u2016>)])\^(-?[\d.]*\d)"), r"<sup>\1</sup>"),
)
NUMBERS = (
    (
        re.compile(r"(?<![\w.])(\d(?:\.\d+)?)e\+?(-?)0*(\d{1,2})\b"),
        lambda found: f"{found[1]}\u00b710<sup>{found[2] and MINUS}{found[3]}</sup>",
    ),
    (re.compile(r"(?<![\w.-])-(?=\d)"), MINUS),
    (re.compile(r"(?<=\d) \+- (?=\d)"), " \u00b1 "),
    (re.compile(r"\binf\b"), "\u221e"),
)

PICTURE = "_static/law.png"


def _copy_mathjax(app: Sphinx) -> None:
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
    for name in UNUSED_FONTS:
        for font in target.rglob(f"MathJax_{name}.woff"):
            font.unlink()


def _drop_unused(static: Path) -> None:
    for pattern in UNUSED:
        for path in list(static.glob(pattern)):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _strip_notebooks(folder: Path) -> None:
    """The notebooks to download carry no outputs: the page shows them, and whoever runs a notebook makes them."""
    for path in folder.rglob("*.ipynb"):
        notebook = nbformat.read(path, 4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)


def _shrink_images(folder: Path) -> None:
    """Drawn figures have few colours and are stored by them, at half the bytes; photographs stay as they are."""
    from PIL import Image

    for path in folder.glob("*.png"):
        with Image.open(path) as opened:
            image = opened.convert("RGBA")
        if image.getcolors(4096) is None or image.getchannel("A").getextrema()[0] != 255:
            continue
        small = io.BytesIO()
        image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
        if len(small.getvalue()) < path.stat().st_size:
            path.write_bytes(small.getvalue())


def pages(outdir: Path) -> list[Path]:
    """The site's pages, less the theme's templates."""
    return sorted(page for page in outdir.rglob("*.html") if "_static" not in page.parts)


def previews(pages: list[Path]) -> dict[str, str]:
    """HTML of all that a link between two of the pages leads to and that can be shown beside it, by ``page#id``."""
    read = {page.name: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages}
    wanted = {
        str(link["href"]).rsplit("/", 1)[-1]
        for soup in read.values()
        for link in soup.select("article a.reference.internal[href*='#']")
        if not str(link["href"]).startswith("#")
    }
    found: dict[str, str] = {}
    for name, soup in read.items():
        for target in soup.select(PREVIEWED):
            key = f"{name}#{target['id']}"
            if key in wanted:
                found[key] = _preview(target)
    return found


def _preview(target: Tag) -> str:
    copy = BeautifulSoup(str(target), "html.parser")
    for link in copy.select(".headerlink"):
        link.decompose()
    for element in copy.select("[id]"):
        del element["id"]
    return str(copy)


def _write_previews(outdir: Path) -> None:
    found = previews(pages(outdir))
    target = outdir / "_static" / "previews" / "all.js"
    target.parent.mkdir(exist_ok=True)
    text = json.dumps(found, ensure_ascii=False, indent=0, sort_keys=True)
    target.write_text(f"window.bookPreviews = {text};\n", encoding="utf-8")


def _base_url() -> str:
    repo = repository.read()
    return f"https://{repo.owner}.github.io/{repo.name}/"


def _write_sitemap(outdir: Path) -> None:
    names = [page.relative_to(outdir).as_posix() for page in pages(outdir) if page.name != "search.html"]
    urls = "\n".join(f"  <url><loc>{_base_url()}{'' if name == 'index.html' else name}</loc></url>" for name in names)
    text = '<?xml version="1.0" encoding="UTF-8"?>\n<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">\n'
    (outdir / "sitemap.xml").write_text(f"{text}{urls}\n</urlset>\n", encoding="utf-8")


def typeset(text: str, kind: str = "th") -> str:
    """The text of a table's heading (``th``), caption or cell (``td``) as a page writes it: Greek, norms, exponents."""
    for pattern, written in (*(() if kind == "td" else HEADINGS), *NUMBERS):
        text = pattern.sub(written, text)
    return text


def _typeset_table(table: re.Match[str]) -> str:
    def cell(found: re.Match[str]) -> str:
        tag, kind, text = found.groups()
        words = kind == "td" and len(text) > LONGEST  # sentences break, numbers and intervals do not
        return (tag.replace("<td", '<td class="words"', 1) if words else tag) + typeset(text, kind)

    return TABLE_TEXT.sub(cell, table[0])


def _kept_together(found: re.Match[str]) -> str:
    before, formula, after = found.groups()
    return f'<span class="together">{before}{formula}{after}</span>' if before or after else formula


def _tidy_pages(outdir: Path) -> None:
    """What the themes and Sphinx write, made shorter and put right.

    Icons come from the theme's fonts alone, not from its script of 1.5 MB too; :data:`ROLES` is applied; code in the
    colour of the code around it has no element of its own; a formula and its punctuation stay in one line; and tables
    of cells are typeset.
    """
    for page in pages(outdir):
        text = page.read_text(encoding="utf-8")
        shorter = re.sub(r"\s*<(?:script|link)\b[^>]*scripts/fontawesome\.js[^>]*>(?:</script>)?", "", text)
        for stated, meant in ROLES:
            shorter = shorter.replace(stated, meant)
        shorter = PLAIN_CODE.sub(r"\1", shorter)
        shorter = TABLE.sub(_typeset_table, FORMULA.sub(_kept_together, shorter))
        page.write_text(shorter, encoding="utf-8")


def _finish(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.format != "html":
        return
    outdir = Path(app.outdir)
    _copy_mathjax(app)
    _drop_unused(outdir / "_static")
    _tidy_pages(outdir)
    _shrink_images(outdir / "_images")
    _shrink_images(outdir / "_static")
    _strip_notebooks(outdir / "_sources")
    if app.builder.name == "html":
        _write_previews(outdir)
        _write_sitemap(outdir)


def description(doctree: nodes.document, longest: int = 300) -> str:
    """The first paragraph of a page that is a sentence or more, in plain words, cut after a whole word."""
    for paragraph in doctree.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        if len(text) > 60:
            return text if len(text) <= longest else f"{text[:longest].rsplit(' ', 1)[0]} ..."
    return ""


def _describe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Puts a description, OpenGraph's and Google Scholar's tags into the head of every page."""
    if doctree is None:
        return
    base, site = _base_url(), str(app.config.project)
    home = pagename == app.config.root_doc
    title = site if home else f"{re.sub('<[^>]*>', '', context['title'])} - {site}"
    words = description(doctree)
    address = base if home else f"{base}{pagename}.html"
    tags = [
        ("name", "description", words),
        ("property", "og:title", title),
        ("property", "og:description", words),
        ("property", "og:type", "book" if home else "article"),
        ("property", "og:url", address),
        ("property", "og:image", base + PICTURE),
        ("property", "og:site_name", site),
        ("name", "twitter:card", "summary_large_image"),
    ]
    if home:
        tags += [
            ("name", "citation_title", site),
            ("name", "citation_author", str(app.config.author)),
            ("name", "citation_publication_date", str(app.config.copyright)),
            ("name", "citation_language", "en"),
            ("name", "citation_fulltext_html_url", base),
        ]
    written = "".join(f'<meta {kind}="{name}" content="{escape(what)}"/>\n' for kind, name, what in tags)
    context["metatags"] = f'{context.get("metatags", "")}\n{written}<link rel="canonical" href="{address}"/>\n'
    # Every proof is given the same id, and no link leads to it.
    context["body"] = context["body"].replace(
        '<div class="proof admonition" id="proof">', '<div class="proof admonition">'
    )


def setup(app: Sphinx) -> dict[str, Any]:
    """Called by Sphinx."""
    app.config.mathjax_path = "mathjax/tex-chtml-full.js"
    bibliography.register()
    app.connect("html-page-context", _describe, priority=900)
    app.connect("build-finished", _finish)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
