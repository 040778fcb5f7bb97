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

#: The packages and modules at the top, from the ground up: a file imports its own package, or earlier ones.
ORDER = ("data", "models", "theory", "measure", "attacks", "train", "analysis", "audit", "experiments", "cli")
#: The files that may go through the door to what is fast.
AT_THE_DOOR = (
    "measure.gradients",
    "attacks.",
    "audit.",
    "train.loop",
    "train.objectives",
    "experiments.cost",
    "experiments.runner",
)
TOP = {"", "__main__"}  # the package's front: it hands everything on


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


def place(name: str) -> int:
    return ORDER.index(name.partition(".")[0])


@pytest.mark.parametrize("name", [name for name in MODULES if name not in TOP])
def test_imports_run_one_way(name: str) -> None:
    for imported in imports_of(name):
        assert imported not in TOP, f"advdim.{name} imports the package's front"
        assert place(imported) <= place(name), f"advdim.{name} imports advdim.{imported}, which stands above it"


def test_no_circle_inside_a_package() -> None:
    needs = {name: imports_of(name) - {name} for name in MODULES if name not in TOP}
    done: set[str] = set()
    while ready := {name for name, needed in needs.items() if name not in done and needed <= done}:
        done |= ready
    assert set(needs) - done == set()


@pytest.mark.parametrize("name", [name for name in MODULES if not name.startswith("models.fast")])
def test_only_the_door_to_what_is_fast_is_used(name: str) -> None:
    fast = {imported for imported in imports_of(name) if imported.startswith("models.fast")}
    assert fast <= ({"models.fast"} if name.startswith(AT_THE_DOOR) else set())


@pytest.mark.parametrize("name", MODULES)
def test_no_private_name_crosses_packages(name: str) -> None:
    own = name.partition(".")[0]
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert not any(alias.name.startswith("_") for alias in node.names), ast.unparse(node)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("_") and isinstance(node.value, ast.Name):
            assert (
                node.value.id in {"self", "os", "ctypes"} or node.attr.startswith("__") or node.value.id not in ORDER
            ), f"{own}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", [path for path in FILES if path.name == "__init__.py"], ids=str)
def test_an_init_only_hands_names_on(path: Path) -> None:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        names = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__version__")
        docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert names or docstring or isinstance(node, ast.ImportFrom), ast.unparse(node)


def test_the_reader_of_imports_sees_them() -> None:
    assert {"theory", "measure", "data"} <= imports_of("")
    assert "models.initialise" in imports_of("models.architectures")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.process
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
        if elapsed < 0.3:
            break
    assert loaded & {"scipy", "sklearn", "matplotlib", "seaborn", "torchvision", "platformdirs", "pandas"} == set()
    assert min(seconds) < 0.3, seconds
