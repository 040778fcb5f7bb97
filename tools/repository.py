"""The repository's address, which stands in `_config.yml` and is written everywhere else from there.

usage: repository.py check                       fails, and says where, if some file names another address
       repository.py set URL [--branch BRANCH]   writes the address everywhere
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nbformat
import yaml

ROOT = Path(__file__).resolve().parents[1]
TEXTS = ("pyproject.toml", "README.md", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md", "book/index.md")
PACKAGE = "advdim"
COLAB_TAG = "remove-cell"

NAME = r"[A-Za-z0-9_](?:[\w-]*[A-Za-z0-9_])?"
#: Every way in which a file may name the repository: its address, a file in it, its Colab link, its site.
FORMS = (
    re.compile(
        rf"(?P<head>github\.com/|colab\.research\.google\.com/github/)(?P<owner>{NAME})/(?P<name>{NAME})"
        r"(?:(?P<mid>(?:\.git)?@|/(?:blob|tree|raw|edit)/)(?P<branch>[\w-]+(?:\.[\w-]+)*))?"
    ),
    re.compile(rf"(?P<head>)(?P<owner>{NAME})(?P<mid>\.github\.io/)(?P<name>{NAME})"),
)


@dataclass(frozen=True)
class Repository:
    """Where the project lives: `https://github.com/OWNER/NAME`, and the branch that Colab opens."""

    url: str
    branch: str

    @property
    def owner(self) -> str:
        """The account, first part of the address's path."""
        return self.url.split("/")[-2]

    @property
    def name(self) -> str:
        """The repository's own name, last part of the address's path."""
        return self.url.split("/")[-1]

    def colab_cell(self) -> str:
        """The first cell of every chapter: installs the package where it is missing, as on Colab, else does nothing."""
        return f"""\
# On Colab this installs the book's package; where it is there already, nothing happens.
import importlib.util
import os

if importlib.util.find_spec("{PACKAGE}") is None:
    home = "git+{self.url}@{self.branch}"
    source = os.environ.get("ADVDIM_SOURCE", home)
    %pip install -q "{{source}}"
"""[:-1]


def repository(url: str, branch: str) -> Repository:
    """Raises ValueError unless `url` is one that Colab can open."""
    if not re.fullmatch(rf"https://github\.com/{NAME}/{NAME}", url):
        raise ValueError(f"{url!r} is not of the form https://github.com/OWNER/NAME, the only one that Colab opens")
    return Repository(url, branch)


def read(root: Path = ROOT) -> Repository:
    """The address that `_config.yml` gives."""
    stated = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["repository"]
    return repository(stated["url"], stated["branch"])


def chapters(root: Path = ROOT) -> list[Path]:
    """The notebooks of the book, in order."""
    return sorted((root / "book").glob("*.ipynb"))


def put_colab_cell(notebook: nbformat.NotebookNode, repo: Repository) -> None:
    """Makes the notebook's first cell the one of `repo`, replacing an older one."""
    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "code" or "ADVDIM_SOURCE" not in first.source:
        first = nbformat.v4.new_code_cell()
        notebook.cells.insert(0, first)
    first.source = repo.colab_cell()
    first.metadata["tags"] = [COLAB_TAG]


def _named(text: str, names: set[str]) -> list[re.Match[str]]:
    return [match for form in FORMS for match in form.finditer(text) if match["name"] in names]


def _agrees(match: re.Match[str], repo: Repository) -> bool:
    branch = match.groupdict().get("branch")
    return (match["owner"], match["name"]) == (repo.owner, repo.name) and branch in (None, repo.branch)


def check(root: Path = ROOT) -> list[str]:
    """One line for each place that does not agree with `_config.yml`; none if all is well."""
    repo = read(root)
    wrong = []
    for path in (root / name for name in TEXTS if (root / name).exists()):
        for match in _named(path.read_text(encoding="utf-8"), {repo.name, PACKAGE}):
            if not _agrees(match, repo):
                wrong.append(f"{path.name}: {match[0]} is not {repo.url} (branch {repo.branch})")
    for path in chapters(root):
        cells = nbformat.read(path, 4).cells
        if not cells or cells[0].source != repo.colab_cell() or cells[0].metadata.get("tags") != [COLAB_TAG]:
            wrong.append(f"{path.name}: its first cell does not install the package from {repo.url}@{repo.branch}")
    return wrong


def _rewrite(match: re.Match[str], repo: Repository) -> str:
    if "branch" in match.groupdict():
        tail = f"{match['mid']}{repo.branch}" if match["mid"] else ""
        return f"{match['head']}{repo.owner}/{repo.name}{tail}"
    return f"{repo.owner}{match['mid']}{repo.name}"


def set_everywhere(repo: Repository, root: Path = ROOT) -> list[str]:
    """Writes the address into `_config.yml`, the texts and the chapters; returns the names of the files changed."""
    names = {read(root).name, repo.name, PACKAGE}
    new: dict[Path, str] = {}
    config = root / "_config.yml"
    new[config] = re.sub(
        r"(?m)^repository:\n  url: .*\n  branch: .*$",
        f"repository:\n  url: {repo.url}\n  branch: {repo.branch}",
        config.read_text(encoding="utf-8"),
    )
    for path in (root / name for name in TEXTS if (root / name).exists()):
        text = path.read_text(encoding="utf-8")
        for form in FORMS:
            text = form.sub(lambda m: _rewrite(m, repo) if m["name"] in names else m[0], text)
        new[path] = text
    for path in chapters(root):
        notebook = nbformat.read(path, 4)
        put_colab_cell(notebook, repo)
        new[path] = nbformat.writes(notebook).rstrip("\n") + "\n"
    changed = [path for path, text in new.items() if text != path.read_text(encoding="utf-8")]
    for path in changed:
        path.write_text(new[path], encoding="utf-8", newline="\n")
    return [str(path.relative_to(root)) for path in changed]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check")
    setter = commands.add_parser("set")
    setter.add_argument("url")
    setter.add_argument("--branch", default=None, help="default: the branch that _config.yml gives")
    args = parser.parse_args()
    try:
        if args.command == "set":
            repo = repository(args.url.removesuffix("/").removesuffix(".git"), args.branch or read().branch)
            print("\n".join(set_everywhere(repo)) or "nothing to change")
            return 0
        wrong = check()
    except ValueError as error:
        parser.error(str(error))
    print("\n".join(wrong) or f"all agree on {read().url}", file=sys.stderr if wrong else sys.stdout)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
