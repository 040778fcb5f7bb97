"""Change the package in small ways, one at a time, and see whether its tests notice: `make mutate`.

Every mutant is one change of one expression (a comparison, an operation, a number, a condition, a returned value, a
call left out) in one of the modules below. The tests named beside the module run on it, up to the first failure. One
that all of them pass has survived: a test is missing, or the change makes no difference. The latter are listed with
the reason in mutants.toml; a survivor that is not listed there fails the run, as does a score below 92%.
"""

from __future__ import annotations

import argparse
import ast
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import random
import signal
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
LISTED = Path(__file__).with_name("mutants.toml")
LEAST = 0.92

_CONTRACT = ["tests/contract/test_not_finite.py", "tests/contract/test_inputs.py", "tests/contract/test_refusals.py"]
_ATTACKS = ["tests/attacks/test_contract.py", *_CONTRACT]
_PATHS = ["tests/theory/test_path_counting.py", "tests/theory/test_open_gate_shares.py"]
_OF_ATTACKS = "attack or pgd or one_step or eps"
#: The modules; the files of tests that are to notice a change of each; which of their tests, as pytest's -k has it.
TESTS = {
    "theory.norms": (
        ["tests/theory/test_norms.py", "tests/theorems/test_lemma_2.py", *_CONTRACT],
        "norm or direction or half",
    ),
    "theory.path_counting": ([*_PATHS, *_CONTRACT], "path or gate or theory"),
    "theory.assumptions": (["tests/theory/test_assumptions.py", _CONTRACT[0]], "assumptions or theory"),
    "models.initialise": (["tests/models/test_initialise.py", "tests/theory/test_assumptions.py"], ""),
    "measure.gradients": (["tests/measure/test_gradients.py", *_CONTRACT], "gradient or measure or loss or inference"),
    "measure.damage": (["tests/measure", *_CONTRACT], "damage or evaluat or measure or nan_network"),
    "attacks.perturbation": (["tests/attacks/test_perturbation.py", *_ATTACKS], _OF_ATTACKS),
    "attacks.fast_gradient": (["tests/attacks/test_fast_gradient.py", *_ATTACKS], _OF_ATTACKS),
    "attacks.projected_gradient": (["tests/attacks/test_projected_gradient.py", *_ATTACKS], _OF_ATTACKS),
    "attacks.deep_fool": (["tests/attacks/test_deep_fool.py", *_ATTACKS], "deepfool or deep_fool"),
    "train.objectives": (
        ["tests/train/test_objectives.py", "tests/train/test_objectives_contract.py", *_CONTRACT],
        "objective or graph or inference",
    ),
    "analysis.power_law": (["tests/analysis/test_power_law.py", _CONTRACT[2]], "power_law or exponent"),
    "analysis.single_curve": (["tests/analysis/test_single_curve.py", _CONTRACT[2]], "single_curve or geometric"),
}

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """One change of one module: where, the statement that was and the one that is, and the module's text with it."""

    module: str
    function: str
    line: int
    before: str
    after: str
    text: str

    @property
    def key(self) -> str:
        """What it is called in mutants.toml: without the number of its line, which changes with others."""
        return f"{self.module} {self.function}: {self.before}  ->  {self.after}"


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The expressions or statements that may stand in the node's place."""
    if isinstance(node, ast.Compare):
        for i, op in enumerate(node.ops):
            yield ast.Compare(
                node.left, [*node.ops[:i], _COMPARISONS[type(op)](), *node.ops[i + 1 :]], node.comparators
            )
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        yield ast.BinOp(node.left, _OPERATIONS[type(node.op)](), node.right)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not | ast.USub | ast.Invert):
        yield node.operand
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield ast.Constant(node.value + 1 if isinstance(node.value, int) else node.value * 1.5 + 0.5)
    elif isinstance(node, ast.IfExp):
        yield ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.Return) and node.value is not None:
        yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    tree = ast.parse(path_of(module).read_text(encoding="utf-8"))
    found = []

    def visit(node: ast.AST, function: str, statement: ast.stmt | None) -> None:
        name = f"{function}.{node.name}" if isinstance(node, ast.FunctionDef | ast.ClassDef) else function
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns") or (field == "bases" and isinstance(node, ast.ClassDef)):
                continue  # types; and strings, among them docstrings, are not changed at all
            places = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
            for i, child in places:
                if not isinstance(child, ast.AST):
                    continue
                around = child if isinstance(child, ast.stmt) else statement
                for other in changes(child):
                    before = _head(around)
                    _put(node, field, i, ast.fix_missing_locations(other))
                    text = ast.unparse(tree)
                    after = _head(other if isinstance(other, ast.stmt) else around)
                    _put(node, field, i, child)
                    found.append(Mutant(module, name.lstrip("."), getattr(child, "lineno", 0), before, after, text))
                visit(child, name, around)

    visit(tree, "", None)
    return found


def _head(statement: ast.stmt | None) -> str:
    """A statement's first line: of one with a body, its head."""
    return "" if statement is None else ast.unparse(statement).split("\n")[0]


def _put(node: ast.AST, field: str, index: int | None, child: ast.AST) -> None:
    if index is None:
        setattr(node, field, child)
    else:
        getattr(node, field)[index] = child


def path_of(module: str) -> Path:
    return ROOT / "src" / "advdim" / Path(*module.split(".")).with_suffix(".py")


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module the text of a mutant."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != f"advdim.{self.mutant.module}":
            return None
        return importlib.util.spec_from_file_location(name, path_of(self.mutant.module), loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self.mutant.text, f"<{self.mutant.key}>", "exec"), vars(module))


def passes(mutant: Mutant | None, tests: Sequence[str], those: str, limit: float) -> bool:
    """Whether the tests pass, on a mutant or on the package as it is, in a fork of this process; no, if they hang."""
    child = os.fork()
    if child == 0:
        os.setsid()
        sys.path.insert(0, str(ROOT / "src"))
        if mutant is not None:
            sys.meta_path.insert(0, Loader(mutant))
        import pytest

        options = ["-o", "addopts=", "--import-mode=importlib", "-p", "no:cacheprovider", "-p", "no:nbval", "-q", "-x"]
        with redirect_stdout(io.StringIO()) as log, redirect_stderr(log):
            status = pytest.main([*options, "-m", "not slow and not gpu", "-k", those, *tests])
        if mutant is None and status != 0:
            print(log.getvalue(), file=sys.__stderr__, flush=True)
        os._exit(0 if status == 0 else 1)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def campaign(chosen: Sequence[Mutant], listed: dict[str, str], *, trust: bool) -> bool:
    """Try the mutants, print what survives; whether the score is high enough and every survivor is listed."""
    limits: dict[str, float] = {}
    survivors = []
    began = time.monotonic()
    for i, mutant in enumerate(chosen, start=1):
        tests, those = TESTS[mutant.module]
        if mutant.module not in limits and not trust:
            start = time.monotonic()
            if not passes(None, tests, those, 1800):
                raise SystemExit(f"the tests of {mutant.module} fail without any change")
            limits[mutant.module] = 60 + 3 * (time.monotonic() - start)
            print(f"{mutant.module}: its tests take {time.monotonic() - start:.0f} s", flush=True)
        if passes(mutant, tests, those, limits.get(mutant.module, 600)):
            survivors.append(mutant)
            known = "listed" if mutant.key in listed else f"line {mutant.line}"
            print(f"survived ({known}): {mutant.key}", flush=True)
        if i % 10 == 0:
            minutes = (time.monotonic() - began) / 60
            print(f"{i} of {len(chosen)} mutants, {i - len(survivors)} killed, {minutes:.0f} min", flush=True)
    score = 1 - len(survivors) / len(chosen)
    new = [m for m in survivors if m.key not in listed]
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} killed, {score:.1%}; {len(new)} survivors are not listed")
    return score >= LEAST and not new


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(TESTS)}; default all", metavar="MODULE")
    parser.add_argument("--sample", type=int, default=150, help="how many mutants to draw (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--all", action="store_true", help="try every mutant: some hours")
    parser.add_argument("--only", metavar="TEXT", help="try the mutants whose name has this text")
    parser.add_argument("--trust", action="store_true", help="do not run the tests of each module unchanged first")
    parser.add_argument("--list", action="store_true", help="name the mutants, and try none")
    options = parser.parse_args(arguments)
    if unknown := set(options.modules) - set(TESTS):
        parser.error(f"no tests are named for {', '.join(sorted(unknown))}")
    chosen = [m for module in options.modules or TESTS for m in mutants(module)]
    if options.only:
        chosen = [m for m in chosen if options.only in m.key]
    elif not options.all and options.sample < len(chosen):
        drawn = set(random.Random(options.seed).sample(range(len(chosen)), options.sample))
        chosen = [m for i, m in enumerate(chosen) if i in drawn]
    if options.list or not chosen:
        print("\n".join(m.key for m in chosen))
        return 0
    # Loaded once, before every fork: most of the time of a test would be the import of torch.
    for library in ("torch", "scipy.stats", "sklearn.isotonic", "pandas", "pytest"):
        importlib.import_module(library)
    listed = tomllib.loads(LISTED.read_text(encoding="utf-8"))["equivalent"]
    return 0 if campaign(chosen, listed, trust=options.trust) else 1


if __name__ == "__main__":
    sys.exit(main())
