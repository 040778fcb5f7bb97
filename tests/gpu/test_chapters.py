"""The live cells of chapters 6 to 8 print on a GPU, rounded, what they print on the CPU."""

import contextlib
import io
import re
from pathlib import Path

import nbformat
import pytest
import torch

import advdim as ad

pytestmark = pytest.mark.gpu(noise=False)

BOOK = Path(__file__).parents[2] / "book"
#: By chapter, what is in the cells to run besides the one with the imports, and what is made smaller in them: then the
#: CPU prints other numbers than the book shows, and runs them, too.
CHAPTERS = {
    "06_new_old_regulariser": (
        ("objectives.", "E ||g||_2 along"),
        {"100_000": "1000", "< 0.01": "< 1", "n=40": "n=12", "range(6)": "range(2)", "steps=20": "steps=2"},
    ),
    "07_first_order_cifar10": (
        ("def train(", "linear = ad.models", "def flat(objective", "def in_train_mode"),
        {"n=600": "n=100", 'split="test")': 'split="test", n=12)', "2 / 100": "9", "epochs=8": "epochs=1"}
        | {"epochs=3": "epochs=1", "range(20)": "range(2)", "(0.5, 1.0, 2.0)": "(1.0,)"}
        | {"reshape(3,": "reshape(1,", "< 0.002 < moved[2] < 0.02": "< 0.02"},
    ),
    "08_dimension_after_training": (
        ("def mlp(size", "def adam_from", "def betas", "noisy = enlarged", "projected = "),
        {"n=200": "n=40", "range(50)": "range(3)", "gap > 0.1": "True", "epochs=10": "epochs=1"}
        | {"epochs=5": "epochs=1", "range(3)": "range(1)", "(8, 16, 32, 64)": "(8, 16)"},
    ),
}


def live_cells(chapter):
    """The source of the cells, made smaller."""
    marks, smaller = CHAPTERS[chapter]
    cells = [c.source for c in nbformat.read(BOOK / f"{chapter}.ipynb", 4).cells if c.cell_type == "code"]
    chosen = [s for s in cells if any(mark in s for mark in marks) or "figures.style()" in s]
    assert len(chosen) > len(marks)
    text = "\n".join(s for s in chosen if "recorded(" not in s or "figures.style()" in s)
    for old, new in smaller.items():
        assert old in text
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_live_cells_print_the_same_on_either_device(chapter, monkeypatch):
    printed, table = [], ad.analysis.table

    def shown(*args, **options):
        print(found := table(*args, **options))
        return found

    monkeypatch.setattr(ad.analysis, "table", shown)  # a notebook shows it where it ends a cell
    for device in ("cuda", "cpu"):
        monkeypatch.setenv("ADVDIM_DEVICE", device)
        names, out = {}, io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(live_cells(chapter), chapter, "exec"), names)
        assert names["device"].type == device
        assert any(t.device.type == device for t in names.values() if isinstance(t, torch.Tensor))
        printed.append(out.getvalue())
    assert printed[0] == printed[1]
    assert re.search(r"\d\.\d", printed[0])
