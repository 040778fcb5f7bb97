"""The package's own imports run one way, its files stay short, and importing it costs little beyond torch."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import advdim

PACKAGE = Path(advdim.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: What each module may import of the package. A new module says here where it stands.
MAY_IMPORT: dict[str, set[str]] = {
    "allocator": set(),
    "folders": set(),
    "archives": {"folders"},
    "data": {"folders"},
    "norms": set(),
    "scaling": set(),
    "collapse": set(),
    "initialise": set(),
    "models": {"initialise"},
    "paths": {"initialise", "models"},
    "theory": {"initialise", "paths"},
    "blocks": set(),
    "folding": {"blocks", "models"},
    "passes": {"blocks", "folding"},
    "deepfool": {"data", "norms", "passes"},
    "attacks": {"data", "deepfool", "norms", "passes"},
    "autoattack": {"attacks", "data", "norms", "passes"},
    "twice": set(),
    "penalties": {"attacks", "norms", "passes", "twice"},
    "measure": {"attacks", "data", "norms", "passes"},
    "augment": set(),
    "recipes": {"data", "penalties"},
    "checkpoints": set(),
    "train": {"augment", "checkpoints", "data", "measure", "passes", "penalties", "recipes"},
    "plots": {"scaling"},
    "experiments": {"experiments.store", "experiments.tables"},
    "experiments.spec": {"recipes"},
    "experiments.grids": {"experiments.spec", "recipes"},
    "experiments.store": {"experiments.spec"},
    "experiments.tables": {"experiments.spec", "scaling"},
    "experiments.after_training": {"attacks", "data", "experiments.spec", "measure", "models", "norms", "train"},
    "experiments.cost": {
        "experiments.after_training",
        "experiments.spec",
        "experiments.tables",
        "models",
        "passes",
        "penalties",
        "recipes",
    },
    "experiments.point": {
        "data",
        "experiments.after_training",
        "experiments.spec",
        "measure",
        "models",
        "norms",
        "theory",
    },
    "experiments.claims": set(),
    "experiments.workers": set(),
    "experiments.cluster": {"experiments.workers"},
    "experiments.engine": {
        "allocator",
        "data",
        "experiments.claims",
        "experiments.point",
        "experiments.spec",
        "experiments.store",
        "experiments.workers",
        "folders",
    },
}
TOP = {"", "__main__", "cli"}  # the package's front, and the command line: they may import everything


def name_of(path: Path) -> str:
    """`experiments.spec` of experiments/spec.py; empty for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {name_of(path): path for path in FILES}


def imports_of(name: str) -> set[str]:
    """The modules of the package that a module imports, anywhere in it, functions included."""
    path = MODULES[name]
    package = ["advdim", *name.split(".")] if path.name == "__init__.py" and name else ["advdim", *name.split(".")[:-1]]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            candidates = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            candidates = [f"{stem}.{alias.name}" for alias in node.names] + [stem]
        else:
            continue
        within = [c.removeprefix("advdim").removeprefix(".") for c in candidates if f"{c}.".startswith("advdim.")]
        named = [next((m for m in (c, c.rpartition(".")[0]) if m in MODULES), "") for c in within]
        # `from .experiments import spec` is spec's import; the bare package in it counts only where nothing else does.
        found |= {m for m in named if not any(other.startswith(f"{m}.") or (m == "" and other) for other in named)}
    return found - {name}


@pytest.mark.parametrize("name", [name for name in MODULES if name not in TOP])
def test_imports_run_one_way(name: str) -> None:
    assert name in MAY_IMPORT, f"say in MAY_IMPORT what advdim.{name} may import"
    assert imports_of(name) - MAY_IMPORT[name] == set()


def test_the_allowed_imports_hold_no_cycle() -> None:
    done: set[str] = set()
    while ready := {name for name, needs in MAY_IMPORT.items() if name not in done and needs & set(MAY_IMPORT) <= done}:
        done |= ready
    assert set(MAY_IMPORT) - done == set()


def test_the_reader_of_imports_sees_them() -> None:
    assert {"norms", "theory", "data"} <= imports_of("")
    assert "initialise" in imports_of("models")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_importing_costs_little_beyond_torch() -> None:
    script = """
import json, sys, time
import torch, numpy
before = set(sys.modules)
start = time.process_time()
import advdim
seconds = time.process_time() - start
print(json.dumps([seconds, sorted({name.partition(".")[0] for name in set(sys.modules) - before})]))
"""
    seconds, loaded = [], set()
    for _ in range(5):  # the best of five, in time of the processor: other tests run beside this one
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
        elapsed, names = json.loads(run.stdout)
        seconds.append(elapsed)
        loaded |= set(names)
        if elapsed < 0.2:
            break
    assert loaded & {"scipy", "sklearn", "matplotlib", "seaborn", "torchvision", "platformdirs", "pandas"} == set()
    assert min(seconds) < 0.2, seconds
