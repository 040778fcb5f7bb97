"""Print the whole book into one PDF, by the system's Chromium and without LaTeX.

usage: topdf.py [FILE]            after `make book`; FILE is _build/html/advdim.pdf

Sphinx makes one page of all chapters, whose links then lead to pages of the PDF; the style sheet has a part for print.
Solutions of exercises stand open.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FOOTER = (
    '<div style="width:100%;font-size:8px;text-align:center;font-family:sans-serif;color:#444">'
    '<span class="pageNumber"></span></div>'
)
FLAGS = ("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
READY = """async () => {
  await MathJax.startup.promise;
  document.documentElement.dataset.theme = "light";
  document.querySelectorAll("details.sd-dropdown").forEach((solution) => { solution.open = true; });
  document.querySelectorAll("img").forEach((image) => { image.loading = "eager"; });
  await Promise.all([...document.images].map((image) => image.decode().catch(() => null)));
}"""


def browser() -> str:
    """The path of a Chromium; raises FileNotFoundError, with the cure, if there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise FileNotFoundError(f"no browser found, of {', '.join(BROWSERS)}; on Debian: apt-get install chromium")
    return found


def one_page() -> Path:
    """Builds the book as one page of HTML, and returns it."""
    book = Path(sys.executable).with_name("jupyter-book")
    subprocess.run([book, "build", "book", "--builder", "singlehtml", "--quiet"], cwd=ROOT, check=True)
    return ROOT / "_build" / "singlehtml" / "index.html"


def print_page(page: Path, target: Path) -> None:
    """Prints a page of HTML, when its equations are set."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser(), args=list(FLAGS))
        tab = chromium.new_page(viewport={"width": 720, "height": 1000}, color_scheme="light")
        tab.set_default_timeout(300_000)
        tab.goto(page.as_uri(), wait_until="load")
        tab.emulate_media(media="print")
        tab.evaluate(READY)
        tab.evaluate("document.dispatchEvent(new Event('book-fit'))")
        tab.pdf(
            path=target,
            format="A4",
            margin={"top": "18mm", "bottom": "18mm", "left": "18mm", "right": "18mm"},
            print_background=True,
            outline=True,
            tagged=True,
            display_header_footer=True,
            header_template="<span></span>",
            footer_template=FOOTER,
        )
        chromium.close()


if __name__ == "__main__":
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "_build" / "html" / "advdim.pdf"
    file.parent.mkdir(parents=True, exist_ok=True)
    print_page(one_page(), file)
    print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
