"""The page of notation against the chapters: no symbol twice, each where the page says, and no definition left out."""

import re
from functools import cache
from pathlib import Path

import nbformat
import pytest

BOOK = Path(__file__).parents[2] / "book"
STATEMENT = re.compile(r"^:::\{prf:(\w+)\}.*?^:::$", re.M | re.S)
ROW = re.compile(r"^\| (\S.*?) \| (.*?) \|(?: (.*?) \|)?$", re.M)
TARGET = re.compile(r"\{(?:prf:ref|ref|eq)\}`(?:[^`<]*<)?([\w-]+)>?`")
GREEK = "alpha beta gamma delta zeta eta theta vartheta kappa lambda mu nu xi rho varrho sigma tau varphi psi omega"
GREEK += " Gamma Delta Theta Lambda Sigma Phi Psi Omega"
#: Greek letters that several chapters use for something of their own, said in the statement where it is used.
LOCAL = {
    "eta": "jumps of a slope (2), a tolerance (3), a learning rate (8, 9)",
    "rho": "rate of a Poisson process (2), share of weights (3, 4), correlation of patches (5)",
    "mu": "a mean (2, 3), a share of the Jacobian (4), a margin (6), a weight decay (9)",
    "zeta": "step of the first layer's sums (2), weights of variance 1 (3)",
    "psi": "an eigenvalue (4), a density (6)",
    "Lambda": "bound of a kurtosis in general, beside the number of the table (4)",
}


@cache
def chapters():
    """{name: its markdown cells, joined}, of the chapters that the page speaks of."""
    out = {}
    for path in sorted(BOOK.glob("0[1-9]_*.ipynb")):
        cells = nbformat.read(path, 4).cells
        out[path.stem] = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return out


SIZES = r"\\(?:[bB]igg?[lr]|left|right|,|;|!|q?quad|(?:begin|end)\{\w+\})(?![a-zA-Z])"


def tokens(tex):
    """TeX in one spelling, token by token, with a space between: macros for norms and products, no braces or spaces."""
    tex = re.sub(SIZES, " ", tex)
    tex = re.sub(r"\\lVert (.*?) ?\\rVert", r"\\norm{\1}", tex)
    tex = re.sub(r"\\langle (.*?), (.*?) ?\\rangle", r"\\inner{\1}{\2}", tex)
    tex = re.sub(r"\\mathbb\{([REP])\}", r"\\\1", tex)
    tex = re.sub(r"\\operatorname\{(sign|Var|Cov)\}", r"\\\1", tex)
    tex = re.sub(r"\\text\{(\w+)\}", r"\\\1", tex)
    return " ".join(token for token in re.findall(r"\\[a-zA-Z]+|\\.|\S", tex) if token not in "{}")


@cache
def formulas(text):
    """The formulas of a text, as tokens, one a line; an ampersand or a new line begins another."""
    found = re.findall(r"\$\$(.*?)\$\$", text, re.S)
    found += re.findall(r"\$([^$]+)\$", re.sub(r"\$\$.*?\$\$", " ", text, flags=re.S))
    return "\n".join(f" {tokens(part)} " for formula in found for part in re.split(r"&|\\\\", formula))


def head(symbol):
    """The tokens of a symbol before any 'in' or '='."""
    return tokens(re.split(r" \\in | = ", symbol)[0])


def pattern(symbol):
    """What to look for: the symbol's tokens, with any few tokens for a dot."""
    return re.compile(r"(?<!_)(?<!\^) " + re.escape(head(symbol)).replace(re.escape("\\cdot"), r"[^=]{1,20}?") + " ")


def rows():
    """(symbol, labels that define it, heading) of each symbol of the page."""
    text = (BOOK / "notation.md").read_text(encoding="utf-8").split("## Words")[0]
    out = []
    for piece in re.split(r"(?m)^## ", text)[1:]:
        heading = piece.splitlines()[0]
        common = TARGET.findall(piece.split("| symbol")[0])
        for cell, _, where in ROW.findall(piece):
            if cell not in ("symbol", ":--"):
                symbols = re.findall(r"\$(.+?)\$", cell) or [cell]
                out += [(symbol, TARGET.findall(where or "") or common, heading) for symbol in symbols]
    return out


def places():
    """{label: (chapter, the text it stands for)}: a statement, the neighbourhood of a formula, or a section."""
    out = {}
    for name, text in chapters().items():
        for box in STATEMENT.finditer(text):
            label = re.search(r"^:label: ([\w-]+)", box[0], re.M)
            if label:  # with its proof, where quantities of the statement may be named first
                proof = re.match(r"\s*:::\{prf:proof\}.*?^:::$", text[box.end() :], re.M | re.S)
                out[label[1]] = name, box[0] + (proof[0] if proof else "")
        for equation in re.finditer(r"\$\$ \(([\w-]+)\)", text):
            opening = text.rfind("$$", 0, equation.start())
            before, after = text.rfind("\n\n", 0, opening - 2), text.find("\n\n", equation.end() + 2)
            out[equation[1]] = name, text[max(before, 0) : after if after > 0 else len(text)]
        for section in re.finditer(r"^\(([\w-]+)\)=\n(#+) ", text, re.M):
            end = re.search(rf"^#{{1,{len(section[2])}}} ", text[section.end() :], re.M)
            out[section[1]] = name, text[section.start() : section.end() + end.start() if end else len(text)]
    return out


PLACES, ROWS = places(), rows()


def test_no_symbol_is_listed_twice():
    names = [tokens(symbol) for symbol, _, _ in ROWS]
    assert [name for name in names if names.count(name) > 1] == []
    assert len(names) > 60


@pytest.mark.parametrize(("symbol", "labels", "heading"), ROWS, ids=[symbol for symbol, _, _ in ROWS])
def test_each_symbol_stands_where_the_page_says(symbol, labels, heading):
    if heading == "Probability and asymptotics":
        assert any(pattern(symbol).search(formulas(text)) for text in chapters().values()) or "a(d)" in symbol
        return
    assert labels, f"{symbol}: the page names no place"
    assert [label for label in labels if label not in PLACES] == []
    if symbol.startswith("("):  # (S), or (H1) to (H5)
        assert all(end in PLACES[labels[0]][1] for end in symbol.split(" to "))
    else:
        found = any(pattern(symbol).search(formulas(PLACES[label][1])) for label in labels)
        assert found, f"{symbol} does not occur at {', '.join(labels)}"


def test_everything_that_a_definition_defines_is_listed():
    """Left sides of equations in definitions, and of ':=' in all statements whose symbol is used elsewhere."""
    listed = {head(symbol) for symbol, _, _ in ROWS} | {head(symbol).replace("\\cdot", "g") for symbol, _, _ in ROWS}
    missing = []
    for text in chapters().values():
        for box in STATEMENT.finditer(text):
            if box[1] == "definition":
                whole = re.sub(r"\$ \$", "", box[0]).replace("&=", "=")
                lefts = [line.partition("=")[0].strip() for line in formulas(whole).splitlines() if "=" in line]
                lefts = [left for left in lefts if left and left.removesuffix(" ( \\varepsilon )") not in listed]
                missing += [left for left in lefts if left not in listed]
            elif box[1] != "proof":
                for name in re.findall(r"([\\\w{}]+) :=", box[0]):
                    elsewhere = text.replace(box[0], "").count(name)
                    missing += [name] if elsewhere and head(name) not in listed else []
    assert missing == ["d ^ 1 / \\infty"]  # a power, and no symbol


def test_greek_letters_of_several_chapters_are_listed_or_local():
    letter = re.compile(rf"\\({'|'.join(GREEK.split())})(?![a-zA-Z])")
    used = {}
    for name, text in chapters().items():
        text = re.sub(r"^:::\{prf:proof\}.*?^:::$", "", text, flags=re.M | re.S)
        text = re.sub(r"```\{dropdown\}.*?```", "", text, flags=re.S)
        for found in set(letter.findall(text)):
            used.setdefault(found, set()).add(name)
    listed = {found for symbol, _, _ in ROWS for found in letter.findall(symbol)}
    several = {found for found, names in used.items() if len(names) > 1}
    assert sorted(several - listed - set(LOCAL)) == []
    assert sorted(set(LOCAL) - set(used)) == []


@pytest.mark.parametrize(
    ("text", "symbol", "found"),
    [
        ("the norm $\\lVert g \\rVert_*$", "\\norm{\\cdot}_*", True),
        ("the norm $\\lVert g \\rVert_2$", "\\norm{\\cdot}_*", False),
        ("the rate $\\beta_L \\norm g$ and", "\\beta_L", True),
        ("a variable $X_d$", "d", False),
    ],
)
def test_the_search_finds_what_it_should(text, symbol, found):
    assert bool(pattern(symbol).search(formulas(text))) is found
