"""The repository's address stands in one place, and the tool that writes it elsewhere finds every disagreement."""

import shutil
from pathlib import Path

import nbformat
import pytest
import repository

ROOT = Path(__file__).parents[2]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project that names its repository in every way known."""
    shutil.copy(ROOT / "_config.yml", tmp_path)
    stated = repository.read(ROOT)
    readme = f"""\
[![test]({stated.url}/actions/workflows/test.yml/badge.svg)]({stated.url}/actions) clone {stated.url}.git.
[Colab](https://colab.research.google.com/github/{stated.owner}/{stated.name}/blob/{stated.branch}/book/02.ipynb)
pip install git+{stated.url}@{stated.branch}, read https://{stated.owner}.github.io/{stated.name}/. Not
https://github.com/pytorch/pytorch/blob/v2.4/README.md.
"""
    (tmp_path / "README.md").write_text(readme)
    (tmp_path / "book").mkdir()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter")])
    repository.put_colab_cell(notebook, stated)
    nbformat.write(notebook, tmp_path / "book" / "02_chapter.ipynb")
    return tmp_path


def test_every_file_names_the_repository_of_the_configuration() -> None:
    assert repository.check(ROOT) == []


def test_a_new_address_is_written_everywhere(project: Path) -> None:
    assert repository.check(project) == []
    new = repository.repository("https://github.com/someone-else/a_fork", "develop")
    changed = repository.set_everywhere(new, project)
    assert sorted(changed) == ["README.md", "_config.yml", "book/02_chapter.ipynb"]
    assert repository.read(project) == new
    assert repository.check(project) == []
    readme = (project / "README.md").read_text()
    assert "advdim" not in readme
    assert readme.count("someone-else/a_fork") == 5
    assert "https://someone-else.github.io/a_fork/" in readme
    assert "a_fork/blob/develop/book" in readme
    assert "a_fork@develop" in readme
    assert "https://github.com/pytorch/pytorch/blob/v2.4/README.md" in readme
    assert repository.set_everywhere(new, project) == []
    assert len(nbformat.read(project / "book" / "02_chapter.ipynb", 4).cells) == 2


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("README.md", "github.com/", "github.com/x"),
        ("README.md", "/blob/main", "/blob/elsewhere"),
        ("README.md", ".github.io", "x.github.io"),
        ("book/02_chapter.ipynb", "git+https://github.com/", "git+https://github.com/x"),
        ("book/02_chapter.ipynb", "remove-cell", "hide-cell"),
    ],
)
def test_a_disagreement_is_found(project: Path, file: str, old: str, new: str) -> None:
    text = (project / file).read_text()
    assert old in text
    (project / file).write_text(text.replace(old, new, 1))
    assert len(repository.check(project)) == 1


@pytest.mark.parametrize("url", ["https://gitlab.com/a/b", "git@github.com:a/b", "https://github.com/a", "a/b"])
def test_an_address_that_colab_cannot_open_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="the only one that Colab opens"):
        repository.repository(url, "main")
