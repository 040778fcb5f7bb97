"""The site as a reader sees it: built strictly, opened from the disk in a browser that can reach nothing else."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import nbformat
import pytest
import repository
import sources

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
WIDTHS = (1280, 1440, 390, 320)
WIDTHS_IN_THE_DARK = (390,)  # colours move nothing; a phone's width shows that
LOADING = 180_000  # milliseconds: on a busy machine
DESK = 1280  # pixels, from which on nothing scrolls but long lines of printed text
COLUMNS = 110  # of printed text that fits there
SCHEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

STATE = """async () => {
  if (window.MathJax && MathJax.startup) await MathJax.startup.promise;
  const all = (selector) => [...document.querySelectorAll(selector)];
  const text = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let raw = [];
  while (text.nextNode()) {
    const parent = text.currentNode.parentElement;
    const left = /\\\\\\(|\\\\\\[|\\$\\$/.test(text.currentNode.data);
    if (left && !parent.closest("script, style, pre, code, mjx-container"))
      raw.push(text.currentNode.data.slice(0, 80));
  }
  return {
    written: all(".math").length,
    typeset: all("mjx-container").length,
    merrors: all("mjx-merror, [data-mml-node=merror]").length,
    raw,
    unloaded: all("img").filter((i) => !i.complete || i.naturalWidth === 0).map((i) => i.src),
    dimmed: all(".cell_output img").filter((i) => getComputedStyle(i).filter !== (
      document.documentElement.dataset.theme === "dark" && !i.closest(".tag_photograph")
        ? "invert(1) hue-rotate(180deg)" : "none")).map((i) => i.src),
    theme: document.documentElement.dataset.theme,
  };
}"""

#: What reaches over the right edge of the window, unless it can be scrolled there in a box of its own, and the boxes
#: that hide a part of what they hold: whether they show it and the keyboard reaches them, and what is in them.
OVERFLOW = """async () => {
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 60))));
  const width = document.documentElement.clientWidth;
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  const inBox = (e) => {
    for (let box = e.parentElement; box && box !== document.body; box = box.parentElement)
      if (scrolls(box) && box.getBoundingClientRect().right <= width + 1) return true;
    return false;
  };
  const seen = [...document.querySelectorAll("article *")].filter((e) => e.getClientRects().length
    && !e.closest("mjx-assistive-mml, .visually-hidden"));
  const outside = seen.filter((e) => e.getBoundingClientRect().right > width + 1 && !inBox(e));
  const hiding = seen.filter((e) => getComputedStyle(e).overflowX !== "visible" && e.clientWidth > 0
    && e.scrollWidth > e.clientWidth + 1 && !e.matches("mjx-container, mjx-container *, input, select"));
  return {
    page: document.scrollingElement.scrollWidth - width,
    outside: outside.map((e) => e.tagName + " " + e.textContent.slice(0, 60)),
    cut: hiding.map((e) => ({
      kind: e.matches(".math") ? "equation" : e.matches("table") || e.querySelector("table") ? "table"
        : e.closest(".cell_output") ? "output" : e.closest("div.highlight") ? "code" : "other",
      columns: Math.max(...e.textContent.split("\\n").map((line) => line.length)),
      by: e.scrollWidth - e.clientWidth,
      shown: getComputedStyle(e).boxShadow !== "none" && e.tabIndex === 0,
      text: e.textContent.slice(0, 60),
    })),
  };
}"""


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a build in which every warning is an error: that of `make book`, if nothing has changed since."""
    stamp = ROOT / sources.STAMP
    if stamp.exists() and stamp.read_text().strip() == sources.digest():
        return ROOT / "_build" / "html"
    folder = tmp_path_factory.mktemp("site")
    book = Path(sys.executable).with_name("jupyter-book")
    command = [
        book,
        "build",
        "book",
        "--path-output",
        folder,
        "--warningiserror",
        "--nitpick",
        "--keep-going",
        "--quiet",
    ]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
    assert build.returncode == 0, build.stdout + build.stderr
    return folder / "_build" / "html"


def pages(site: Path) -> list[Path]:
    """Every page, less those that the theme's own assets hold and the listings of the source."""
    return sorted([*site.glob("*.html"), *site.glob("api/*.html")])


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """A headless Chromium, the system's own."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        reason = f"no browser found, of {', '.join(BROWSERS)}; on Debian: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable,
            args=["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"],
        )
        yield browser
        browser.close()


#: To play with, on whatever page.
FIGURES = {"fig-one-grey-level"}
FIGURES |= {f"fig-play-{name}" for name in ("dual-norm", "kinks", "paths", "exponents", "collapse")}

#: Rules of WCAG 2.1, levels A and AA; that of colours, which depends on the mode, goes by itself.
LOOKED_AT_BY_AXE = ("index", "01_preface", "02_attacks_to_gradients", "04_counting_paths", "notation", "bibliography")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"], "rules": {"color-contrast": {"enabled": False}}}
CONTRAST = {"runOnly": ["color-contrast"]}

#: Marks, of all texts of one look (colour, size, weight and what lies behind), the first: axe takes long for thousands.
LOOKS = """() => {
  const seen = new Set();
  document.querySelectorAll("[data-look]").forEach((e) => e.removeAttribute("data-look"));
  for (const e of document.querySelectorAll("body *")) {
    const text = [...e.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
    if (!text || !e.getClientRects().length || e.closest("script, style")) continue;
    const behind = new Set();
    for (let box = e; box; box = box.parentElement) behind.add(getComputedStyle(box).backgroundColor);
    const look = getComputedStyle(e);
    const key = [look.color, look.fontSize, look.fontWeight, look.opacity, ...behind].join();
    if (!seen.has(key)) e.setAttribute("data-look", "");
    seen.add(key);
  }
}"""


@dataclass
class Visit:
    """What happened while a page was open, and what its scripts say of it at each width."""

    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)
    overflow: dict[int, dict[str, Any]] = field(default_factory=dict)
    violations: list[Any] = field(default_factory=list)
    played: dict[str, Any] = field(default_factory=dict)


def visit(browser: Any, path: Path) -> dict[str, Visit]:
    """Opens a page with every request to elsewhere aborted, and reads it in both modes at every width.

    A page is loaded once, because that takes longest; from light to dark it changes as when a reader's system does.
    """
    size = {"width": WIDTHS[0], "height": 900}
    # Without motion: else a button is looked at halfway between its colours.
    page = browser.new_page(viewport=size, color_scheme=SCHEMES[0], reduced_motion="reduce")
    page.set_default_timeout(LOADING)
    seen = Visit()

    def route(route: Any) -> None:
        if route.request.url.startswith(("file:", "data:", "blob:")):
            route.continue_()
        else:
            seen.outside.append(route.request.url)
            route.abort()

    page.route("**/*", route)
    page.on("console", lambda message: message.type in ("error", "warning") and seen.errors.append(message.text))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("requestfailed", lambda request: seen.errors.append(f"failed: {request.url}"))
    page.goto(path.as_uri(), wait_until="load")
    page.evaluate("document.querySelectorAll('details').forEach((e) => (e.open = true))")
    modes = {SCHEMES[0]: seen, SCHEMES[1]: Visit(seen.outside, seen.errors)}
    for scheme, own in modes.items():
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
        own.state = page.evaluate(STATE)
        for width in (
            WIDTHS if scheme == SCHEMES[0] else WIDTHS_IN_THE_DARK
        ):  # the scripts fit equations anew when the column changes
            page.set_viewport_size({"width": width, "height": 900})
            own.overflow[width] = page.evaluate(OVERFLOW)
    page.set_viewport_size({"width": WIDTHS[0], "height": 900})
    for figure in page.locator(".advdim-fig").all():
        seen.played[figure.get_attribute("id")] = play(page, figure)
    if path.stem in LOOKED_AT_BY_AXE:  # last, because it takes the formulas out: glyphs by the thousand, from MathJax
        page.evaluate("document.querySelectorAll('mjx-container').forEach((e) => e.remove())")
        seen.violations = axe(page, RULES)
        for scheme, own in modes.items():
            page.emulate_media(color_scheme=scheme)
            page.wait_for_function(f"document.documentElement.dataset.theme === '{scheme}'")
            page.evaluate(LOOKS)
            own.violations += axe(page, CONTRAST, "[data-look]")
    page.close()
    return modes


def axe(page: Any, options: dict[str, Any], within: str = "html") -> list[Any]:
    """The rules that a page breaks as it is shown, each with what breaks it."""
    from axe_playwright_python.sync_playwright import Axe

    asked = {**options, "resultTypes": ["violations"], "preload": False}
    broken = Axe().run(page, context={"include": [[within]]}, options=asked).response["violations"]
    return [(rule["id"], [node["html"][:120] for node in rule["nodes"][:3]]) for rule in broken]


def play(page: Any, figure: Any) -> dict[str, Any]:
    """What a figure to play with says before and after a key, and which of its pictures a screen and paper show."""
    note, control = figure.locator(".note"), figure.locator("input[type=range], [tabindex='0']").first
    said = [note.inner_text()]
    control.focus()
    page.keyboard.press("End" if control.evaluate("(e) => e.tagName") == "INPUT" else "ArrowDown")
    said.append(note.inner_text())
    shown = {}
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        shown[media] = [name for name in ("static", "live") if figure.locator(f".{name}").is_visible()]
    page.emulate_media(media="screen")
    return {"said": said, "shown": shown}


@pytest.fixture(scope="session")
def visits(site: Path, chromium: Any) -> dict[tuple[str, str], Visit]:
    """Every page, in light and in dark mode."""
    return {(page.name, mode): seen for page in pages(site) for mode, seen in visit(chromium, page).items()}


def found(visits: dict[tuple[str, str], Visit], what: Any) -> dict[tuple[str, str], Any]:
    """The pages where there is something to find."""
    return {page: what(seen) for page, seen in visits.items() if what(seen)}


@pytest.mark.browser
def test_no_page_asks_for_anything_outside_the_site(visits: dict[tuple[str, str], Visit]) -> None:
    assert len(visits) >= 2 * len(repository.chapters(ROOT)) > 0
    assert found(visits, lambda seen: seen.outside) == {}


@pytest.mark.browser
def test_no_page_logs_an_error(visits: dict[tuple[str, str], Visit]) -> None:
    assert found(visits, lambda seen: seen.errors) == {}


@pytest.mark.browser
def test_every_formula_is_typeset(visits: dict[tuple[str, str], Visit]) -> None:
    assert sum(seen.state["written"] for seen in visits.values()) > 0
    assert {k: s.state for k, s in visits.items() if s.state["written"] != s.state["typeset"]} == {}
    assert found(visits, lambda seen: seen.state["merrors"]) == {}
    assert found(visits, lambda seen: seen.state["raw"]) == {}


def overflows(visits: dict[tuple[str, str], Visit]) -> Iterator[tuple[str, str, int, dict[str, Any]]]:
    """Page, mode, width and what reaches over an edge there."""
    for (page, mode), seen in visits.items():
        for width, overflow in seen.overflow.items():
            yield page, mode, width, overflow


@pytest.mark.browser
def test_no_page_scrolls_sideways(visits: dict[tuple[str, str], Visit]) -> None:
    wide = [(*where, found) for *where, found in overflows(visits) if found["page"] > 0 or found["outside"]]
    assert wide == []


@pytest.mark.browser
def test_on_a_desk_no_equation_is_wider_than_its_column(visits: dict[tuple[str, str], Visit]) -> None:
    """Nor is code or a table; printed lines scroll where they are longer than :data:`COLUMNS`."""
    wide = [
        (page, mode, width, box)
        for page, mode, width, found in overflows(visits)
        for box in found["cut"]
        if width >= DESK and (box["kind"] != "output" or box["columns"] <= COLUMNS)
    ]
    assert wide == []


@pytest.mark.browser
def test_what_scrolls_shows_it_and_can_be_focused(visits: dict[tuple[str, str], Visit]) -> None:
    boxes = [(page, mode, width, box) for page, mode, width, found in overflows(visits) for box in found["cut"]]
    assert any(box["kind"] == "equation" for *_, box in boxes), "nothing was measured"
    assert [box for box in boxes if not box[-1]["shown"]] == []


@pytest.mark.browser
def test_figures_load_and_in_dark_mode_are_turned_round_but_photographs_stay(
    visits: dict[tuple[str, str], Visit],
) -> None:
    assert {seen.state["theme"] for (_, mode), seen in visits.items() if mode == "dark"} == {"dark"}
    assert found(visits, lambda seen: seen.state["unloaded"]) == {}
    assert found(visits, lambda seen: seen.state["dimmed"]) == {}


@pytest.mark.browser
def test_axe_finds_nothing(visits: dict[tuple[str, str], Visit]) -> None:
    assert {Path(page).stem for page, _ in visits} >= set(LOOKED_AT_BY_AXE)
    assert found(visits, lambda seen: seen.violations) == {}


@pytest.mark.browser
def test_figures_to_play_with_answer_the_keyboard_and_stand_still_in_print(
    visits: dict[tuple[str, str], Visit],
) -> None:
    played = {(page, ident): each for (page, _), seen in visits.items() for ident, each in seen.played.items()}
    assert {ident for _, ident in played} >= FIGURES
    assert {where: each["said"] for where, each in played.items() if len(set(each["said"])) < 2} == {}
    shown = {"screen": ["live"], "print": ["static"]}
    assert {where: each["shown"] for where, each in played.items() if each["shown"] != shown} == {}


@pytest.mark.browser
def test_links_show_what_they_lead_to_on_this_page_and_on_another(site: Path, chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": DESK, "height": 900})
    page.goto((site / "01_preface.html").as_uri(), wait_until="load", timeout=LOADING)
    page.locator("article a[href*='def-vulnerability']").first.hover()
    shown = page.locator("#book-preview")
    shown.wait_for(state="visible")
    assert "Definition" in shown.inner_text()
    assert shown.locator("mjx-container").count() > 0
    page.keyboard.press("Escape")
    assert shown.is_hidden()
    page.close()


@pytest.mark.browser
def test_proofs_fold_and_stand_open_in_print(site: Path, chromium: Any) -> None:
    page = chromium.new_page(viewport={"width": DESK, "height": 900})
    page.goto((site / "02_attacks_to_gradients.html").as_uri(), wait_until="load", timeout=LOADING)
    words = page.locator("div.proof.fold p").first
    assert words.is_visible()
    page.locator(".proof-bar button").first.click()
    assert words.is_hidden()
    page.emulate_media(media="print")
    assert words.is_visible()
    page.close()


def test_the_site_is_light_and_says_what_it_is(site: Path) -> None:
    files = [path for path in site.rglob("*") if path.is_file() and path.suffix != ".pdf"]  # which `make pdf` adds
    assert sum(path.stat().st_size for path in files) <= 12e6
    assert list(site.rglob("*.map")) == []
    for path in (site / "_sources").rglob("*.ipynb"):
        assert not any(cell.get("outputs") for cell in nbformat.read(path, 4).cells), (
            f"{path.name} carries its outputs twice"
        )
    head = (site / "index.html").read_text(encoding="utf-8").split("</head>")[0]
    for name in ("description", "og:title", "og:image", "citation_title", "citation_author"):
        assert f'"{name}" content="' in head, name
    for page in pages(site):
        if page.name != "search.html":
            assert page.relative_to(site).as_posix().replace("index.html", "") in (site / "sitemap.xml").read_text()


def test_whatever_a_build_reads_changes_the_digest(tmp_path: Path) -> None:
    for name in ("book", "tools", "src/advdim/theory"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("_config.yml", "requirements.txt", "book/01.ipynb", "src/advdim/theory/norms.py"):
        (tmp_path / name).write_text(name)
    digests = {sources.digest(tmp_path)}
    for name in ("_config.yml", "book/01.ipynb", "src/advdim/theory/norms.py", "book/new.md"):
        (tmp_path / name).write_text("other")
        digests.add(sources.digest(tmp_path))
    (tmp_path / "book" / "new.md").rename(tmp_path / "book" / "newer.md")
    assert len(digests | {sources.digest(tmp_path)}) == 6


class Links(HTMLParser):
    """The links, ids and images of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.undescribed: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids |= {value for key in ("id", "name") if (value := given.get(key))}
        self.links += [value for key in ("href", "src") if (value := given.get(key))]
        if tag == "img" and not given.get("alt"):
            self.undescribed.append(given.get("src") or "an image")


@pytest.fixture(scope="session")
def parsed(site: Path) -> dict[Path, Links]:
    """Every page, read."""
    read = {}
    for page in [*site.glob("*.html"), *site.glob("api/*.html")]:
        read[page] = Links()
        read[page].feed(page.read_text(encoding="utf-8"))
    return read


def test_internal_links_lead_somewhere(parsed: dict[Path, Links]) -> None:
    broken = []
    for page, links in parsed.items():
        for link in links.links:
            if link.split(":")[0] in ("http", "https", "mailto", "data", "javascript"):
                continue
            target, fragment = urldefrag(link)
            file = (page.parent / unquote(target.split("?")[0])).resolve() if target else page
            if not file.exists() or (fragment and file in parsed and unquote(fragment) not in parsed[file].ids):
                broken.append(f"{page.name} -> {link}")
    assert broken == []


def test_every_image_is_described(parsed: dict[Path, Links]) -> None:
    assert {page.name: links.undescribed for page, links in parsed.items() if links.undescribed} == {}


def test_every_chapter_opens_in_colab(parsed: dict[Path, Links], site: Path) -> None:
    repo = repository.read(ROOT)
    for chapter in repository.chapters(ROOT):
        path = f"{repo.owner}/{repo.name}/blob/{repo.branch}/book/{chapter.name}"
        links = parsed[site / f"{chapter.stem}.html"].links
        assert f"https://colab.research.google.com/github/{path}" in links, chapter.name
