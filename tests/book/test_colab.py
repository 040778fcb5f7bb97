"""Every chapter runs on Colab: alone in an empty folder, where the package is missing and all that it needs is there.

Colab is played by a virtual environment that holds what Colab has and the chapters need, as links into this one's
distributions, so that nothing is copied or downloaded. pip has no index: were the package to ask for anything that
Colab does not have, or for another version, its installation would fail.
"""

import os
import shutil
import subprocess
import sys
import venv
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
import repository
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[2]
COLAB = [
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "scikit-learn",
    "matplotlib",
    "seaborn",
    "pandas",
    "platformdirs",
    "tqdm",
    "ipykernel",
    "nbclient",
    "pip",
    "setuptools",
    "wheel",
]


def closure(names: list[str]) -> dict[str, metadata.Distribution]:
    """The named distributions and all that they require, as installed here."""
    found: dict[str, metadata.Distribution] = {}
    wanted = [(name, "") for name in names]
    seen: set[tuple[str, str]] = set()
    while wanted:
        name, extra = wanted.pop()
        name = canonicalize_name(name)
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        found[name] = metadata.distribution(name)
        for needed in map(Requirement, found[name].requires or ()):
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                wanted += [(needed.name, further) for further in ("", *needed.extras)]
    return found


@dataclass(frozen=True)
class Colab:
    """An environment without the package, a folder to work in, and the variables that a kernel sees there."""

    python: Path
    site: Path
    variables: dict[str, str]

    def run(self, *arguments: str, folder: Path) -> str:
        """What the environment's Python prints, given these arguments."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=folder,
            env=self.variables,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def installed(self) -> set[str]:
        """What is installed, as pip sees it: names and versions."""
        listing = "from importlib.metadata import distributions as d; print(*{x.name + '==' + x.version for x in d()})"
        return set(self.run("-c", listing, folder=self.python.parent).split())


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The package as it stands in the working tree, as a repository that pip can install from."""
    folder = tmp_path_factory.mktemp("origin") / "advdim"
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-q", "-m", "The working tree"]):
        identity = ["-c", "user.name=advdim", "-c", "user.email=advdim@localhost", "-c", "commit.gpgsign=false"]
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return f"git+{folder.as_uri()}@main"


@pytest.fixture
def colab(tmp_path: Path, source: str) -> Colab:
    """A fresh Colab."""
    folder = tmp_path / "env"
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for distribution in closure(COLAB).values():
        for file in distribution.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(distribution.locate_file(top))).resolve())
    variables = {
        "PATH": f"{folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "OMP_NUM_THREADS": "1",
        "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(tmp_path / "matplotlib")),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's own reading: the 0 turns isolation off
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "ADVDIM_SOURCE": source,
    }
    return Colab(python, site, variables)


def said(notebook: nbformat.NotebookNode) -> list[str]:
    """What every cell but the first, which installs, prints or results in."""
    words = []
    for cell in notebook.cells[1:]:
        if cell.cell_type == "code":
            streams = [o.text for o in cell.outputs if o.output_type == "stream"]
            results = [o.data["text/plain"] for o in cell.outputs if o.output_type == "execute_result"]
            words.append("".join(streams + results))
    return words


def chapters() -> list[object]:
    """The first chapter in every run of the tests, the others by ``make colab-check``."""
    first, *others = repository.chapters(ROOT)
    marked = [pytest.param(path, id=path.stem, marks=pytest.mark.colab) for path in others]
    return [pytest.param(first, id=first.stem), *marked]


@pytest.mark.parametrize("chapter", chapters())
def test_chapter_runs_on_colab(colab: Colab, tmp_path: Path, chapter: Path) -> None:
    before = colab.installed()
    content = tmp_path / "content"
    content.mkdir()
    shutil.copy(chapter, content)
    execute = "import sys; from nbclient.cli import main; sys.argv[0] = 'jupyter-execute'; main()"
    colab.run("-c", execute, "--inplace", chapter.name, folder=content)

    ran = nbformat.read(content / chapter.name, 4)
    assert said(ran) == said(nbformat.read(chapter, 4))
    where = colab.run(
        "-c", "from importlib.util import find_spec; print(find_spec('advdim').origin)", folder=content
    ).strip()
    assert Path(where).is_relative_to(colab.site), "the chapter ran some other environment's package"
    after = colab.installed()
    assert before - after == set(), "the installation replaced what Colab has"
    assert [line.split("==")[0] for line in after - before] == ["advdim"]
