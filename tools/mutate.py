"""Change the package in small ways, one at a time, and see whether its tests notice: `make mutate`.

Every mutant is one change of one expression (a comparison, an operation, a number, a condition, a returned value, a
call left out) in one of the modules below. From each module, as many are drawn as --sample says; --all takes every one.

First each test runs once on the package as it is, and what lines of the modules it runs is noted. A mutant then meets
the tests that run its line, those first that are quick, have noticed many mutants, and are of the module's own file;
after them, the other tests of the same files; up to the first failure, a crash, or a time-out: it is killed. It has
survived if all pass, or as many as take --seconds together, and, unless it is listed, five times as long. Tests marked
slow, gpu, process or browser are left out, so the score is a lower bound of what the whole suite notices.

The score is the number killed, divided by the number tried less those that mutants.toml lists as equivalent: changes
that make no difference, with the reason. A survivor that is not listed fails the run, as does a score below 92%.

Results are kept in .mutants: what was killed stays so until its module changes, what survived is tried again when the
tests do. No pytest starts for a mutant: one process has collected all tests, and is forked; the changed function takes
the other's place there.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import math
import os
import random
import resource
import select
import signal
import sys
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LISTED = Path(__file__).with_name("mutants.toml")
KEPT = ROOT / ".mutants"
LEAST = 0.92
ANEW = b"anew"
AGAIN = 5  # times as many seconds of tests meet what has survived without being listed
OWN = 3  # how much more a test of the module's own file promises
MEMORY = 4 * 2**30  # bytes that a mutant may ask for

MODULES = (
    "theory.norms",
    "theory.graph",
    "theory.graph_walk",
    "theory.path_counting",
    "theory.assumptions",
    "models.initialise",
    "measure.gradients",
    "measure.damage",
    "attacks.perturbation",
    "attacks.fast_gradient",
    "attacks.projected_gradient",
    "attacks.deep_fool",
    "train.objectives",
    "analysis.power_law",
    "analysis.single_curve",
)
#: Folders and files of tests that are to notice.
TESTS = (
    "theory",
    "theorems",
    "measure",
    *(f"attacks/test_{name}.py" for name in ("contract", "deep_fool", "fast_gradient", "perturbation")),
    "attacks/test_projected_gradient.py",
    "contract",
    "models/test_initialise.py",
    "train/test_objectives.py",
    "train/test_objectives_contract.py",
    "analysis/test_power_law.py",
    "analysis/test_single_curve.py",
)
MARKS = "not slow and not gpu and not process and not browser"
OPTIONS = ["-o", "addopts=", "--import-mode=importlib", "--capture=no", "-m", MARKS]
OPTIONS += [word for name in ("cacheprovider", "nbval", "xdist", "terminal") for word in ("-p", f"no:{name}")]

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


# The mutants


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the how-manyth, where, the statement that was and the one that is."""

    module: str
    index: int
    function: str
    inside: bool  # a function, whose code can be exchanged; else the module is imported anew
    lines: range  # of the statement, or of its head
    before: str
    after: str

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


def source_of(module: str) -> Path:
    return ROOT / "src" / "advdim" / Path(*module.split(".")).with_suffix(".py")


def _changed(tree: ast.Module, module: str) -> Iterator[Mutant]:
    """The mutants of a tree in the order of its text; while one is yielded, the tree has its change."""
    index = 0

    def visit(node: ast.AST, function: str, inside: bool, statement: ast.stmt | None) -> Iterator[Mutant]:
        nonlocal index
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases"):
                continue  # types, and what makes a class a frozen one; strings are not changed at all
            for i, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(child, ast.AST) or (isinstance(child, ast.keyword) and child.arg == "strict"):
                    continue  # zip(strict=True) is a check of what is so
                around = child if isinstance(child, ast.stmt) else statement
                for other in changes(child):
                    before, lines = _head(around), _lines(around)
                    _put(node, name, i, ast.copy_location(other, child))
                    ast.fix_missing_locations(other)
                    after = _head(other if isinstance(other, ast.stmt) else around)
                    yield Mutant(module, index, function, inside, lines, before, after)
                    index += 1
                    _put(node, name, i, child)
                if isinstance(child, ast.FunctionDef | ast.ClassDef):
                    longer = f"{function}.{child.name}".lstrip(".")
                    yield from visit(child, longer, inside or isinstance(child, ast.FunctionDef), around)
                else:
                    yield from visit(child, function, inside, around)

    yield from visit(tree, "", False, None)


def _head(statement: ast.stmt | None) -> str:
    """A statement's first line: of one with a body, its head."""
    return "" if statement is None else ast.unparse(statement).split("\n")[0]


def _lines(statement: ast.stmt | None) -> range:
    if statement is None:
        return range(0)
    body = getattr(statement, "body", None)
    end = body[0].lineno if body else (statement.end_lineno or statement.lineno) + 1
    return range(statement.lineno, max(end, statement.lineno + 1))


def _put(node: ast.AST, name: str, index: int | None, child: ast.AST) -> None:
    if index is None:
        setattr(node, name, child)
    else:
        getattr(node, name)[index] = child


def mutants(module: str) -> list[Mutant]:
    """All mutants of a module, in the order of its text."""
    return list(_changed(ast.parse(source_of(module).read_text(encoding="utf-8")), module))


def compiled(mutant: Mutant) -> Any:
    """The module's code with the change."""
    tree = ast.parse(source_of(mutant.module).read_text(encoding="utf-8"))
    for found in _changed(tree, mutant.module):
        if found.index == mutant.index:
            return compile(tree, str(source_of(mutant.module)), "exec")
    raise LookupError(mutant.key)


# Putting one in the place of what is


def exchange(mutant: Mutant) -> None:
    """Give the function of a module that is imported the code of the mutant: whoever holds it, holds the mutant."""
    module = sys.modules[f"advdim.{mutant.module}"]
    other = {name: vars(module)[name] for name in ("__name__", "__package__", "__file__")}
    exec(compiled(mutant), other)
    ours, theirs = vars(module), other
    for part in mutant.function.split("."):
        here, there = ours[part], theirs[part]
        if not isinstance(here, type):
            break
        ours, theirs = dict(vars(here)), dict(vars(there))
    here, there = _function(here), _function(there)
    here.__code__, here.__defaults__, here.__kwdefaults__ = there.__code__, there.__defaults__, there.__kwdefaults__


def _function(found: Any) -> Any:
    """What is inside decorators, static and class methods, and properties."""
    while not isinstance(found, FunctionType) or hasattr(found, "__wrapped__"):
        found = next(getattr(found, name) for name in ("__wrapped__", "__func__", "fget") if hasattr(found, name))
    return found


class Loader(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives one module the code of a mutant when it is imported."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != f"advdim.{self.mutant.module}":
            return None
        return importlib.util.spec_from_file_location(name, source_of(self.mutant.module), loader=self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(compiled(self.mutant), vars(module))


# Running tests


@dataclass(eq=False)
class Session:
    """A plugin of pytest: once the tests are collected, ``then`` takes the place of running them all."""

    then: Callable[[dict[str, Any]], None]
    failed: str = ""

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        once = (Phase.explicit, Phase.generate)  # a failure will do, however long
        settings.register_profile("mutants", phases=once, database=None, report_multiple_bugs=False)
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            raise session.Interrupted("tests cannot be collected")
        self.then({item.nodeid: item for item in session.items})
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.failed = report.longreprtext

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            print(report.longreprtext, file=sys.__stderr__, flush=True)


def collect(tests: Iterable[str], then: Callable[[dict[str, Any], Session], None]) -> int:
    """Collect tests as pytest does, and call ``then`` with them by their names."""
    import pytest

    session = Session(lambda items: then(items, session))
    return int(pytest.main([*OPTIONS, "--rootdir", str(ROOT), *tests], plugins=[session]))


def run(item: Any, following: Any, session: Session) -> str:
    """What failed in a test, or nothing."""
    session.failed = ""
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
    return session.failed


def forked(work: Callable[[int], object], seconds: float | None = None) -> tuple[int, str]:
    """Call ``work`` with the end of a pipe in a fork, of so many seconds; its status, 0 for done, and what it wrote."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            os.setpgid(0, 0)  # a group to kill; a session of its own would lose the niceness of this one
            if seconds is not None:
                _limit(seconds)
            work(writing)
            status = 0
        except BaseException:
            traceback.print_exc()
            print(end="", flush=True)
        finally:
            os._exit(status)
    os.close(writing)
    # Of seconds of the processor, of which a busy machine gives few; those of the clock are for what waits for ever.
    end, told = time.monotonic() + (math.inf if seconds is None else 600 + 30 * seconds), b""
    try:
        while time.monotonic() < end:
            if select.select([reading], [], [], 1.0)[0]:
                more = os.read(reading, 2**16)
                if not more:
                    break
                told += more
        else:
            os.killpg(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1], told.decode()
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise
    finally:
        os.close(reading)


def _limit(seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) + 1, int(seconds) + 2))
    if (size := Path("/proc/self/statm")).exists():
        used = int(size.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)


# What each test runs


@dataclass
class Test:
    """A test on the package as it is: how long it takes, and what lines of what modules it runs."""

    seconds: float
    lines: dict[str, set[int]]
    tried: int = 0
    kills: int = 0

    @property
    def promise(self) -> float:
        """Mutants that it may be expected to kill in a second."""
        return (self.kills + 0.3) / (self.tried + 1) / (self.seconds + 0.02)


def traced(call: Callable[[], object], files: dict[str, str]) -> dict[str, set[int]]:
    """The lines of the files that a call runs."""
    found: dict[str, set[int]] = {module: set() for module in files.values()}

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        lines = found.get(files.get(frame.f_code.co_filename, ""))
        if lines is None:
            return None

        def line(frame: FrameType, event: str, argument: Any) -> Any:
            lines.add(frame.f_lineno)
            return line

        return line(frame, event, argument)

    sys.settrace(watch)
    try:
        call()
    finally:
        sys.settrace(None)
    return {module: lines for module, lines in found.items() if lines}


def test_files() -> list[Path]:
    folders = [ROOT / "tests" / name for name in TESTS]
    return [file for f in folders for file in (sorted(f.rglob("test_*.py")) if f.is_dir() else [f])]


def digest(*files: Path) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def lines_of_tests() -> dict[str, Test]:
    """Run the tests that have changed since they last ran here, or whose modules have; return what all of them run."""
    helpers = digest(*sorted((ROOT / "tests" / "helpers").glob("*.py")))
    modules = {module: digest(source_of(module)) for module in MODULES}
    (KEPT / "tests").mkdir(parents=True, exist_ok=True)
    tests: dict[str, Test] = {}
    for path in test_files():
        name = str(path.relative_to(ROOT))
        kept = KEPT / "tests" / f"{name.replace('/', '.')}.json"
        known: dict[str, Any] = (
            json.loads(kept.read_text()) if kept.exists() else {"version": "", "modules": {}, "tests": []}
        )
        used = {module for _, _, lines in known["tests"] for module in lines}
        if known["version"] != digest(path) + helpers or any(known["modules"][m] != modules[m] for m in used):
            status, told = forked(partial(_note, name))
            if status:
                raise SystemExit(f"the tests of {name} cannot be run (status {status})")
            found = [json.loads(line) for line in told.splitlines()]
            print(f"{name}: {len(found)} tests, {sum(seconds for _, seconds, _ in found):.0f} s", flush=True)
            known = {"version": digest(path) + helpers, "modules": modules, "tests": found}
            kept.write_text(json.dumps(known))
        for test, seconds, lines in known["tests"]:
            tests[test] = Test(seconds, {module: set(numbers) for module, numbers in lines.items()})
    return tests


def _note(name: str, pipe: int) -> None:
    """Run the tests of a file on the package as it is, and write of each its name, its seconds and its lines."""
    files = {str(source_of(module)): module for module in MODULES}

    def each(items: dict[str, Any], session: Session) -> None:
        rest = [*items.values(), None]
        for item, following in pairwise(rest):
            start = time.process_time()
            lines = traced(partial(run, item, following, session), files)
            seconds = time.process_time() - start
            if session.failed:
                print(f"not used, as it fails unchanged: {item.nodeid}\n{session.failed}", flush=True)
                continue
            told = [item.nodeid, seconds, {module: sorted(numbers) for module, numbers in lines.items()}]
            os.write(pipe, json.dumps(told).encode() + b"\n")

    if (status := collect([name], each)) not in (0, 5):  # 5: all are marked
        raise RuntimeError(f"pytest ends with {status}")


# The campaign


@dataclass
class Campaign:
    """Mutants, tests, and what came of them so far."""

    tests: dict[str, Test]
    seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    results: dict[str, str] = field(default_factory=dict)  # "" for a survivor

    def name(self, mutant: Mutant) -> str:
        if mutant.module not in self.versions:
            self.versions[mutant.module] = digest(source_of(mutant.module))[:12]
        return f"{mutant.module} {self.versions[mutant.module]} {mutant.index}"

    def chosen(self, mutant: Mutant) -> list[str]:
        """The tests that a mutant meets, in order."""
        lines = {name: test.lines.get(mutant.module, set()) for name, test in self.tests.items()}
        runs = [n for n, run in lines.items() if (not run.isdisjoint(mutant.lines) if mutant.inside else run)]
        files = {name.partition("::")[0] for name in runs}
        beside = [name for name in self.tests if name.partition("::")[0] in files and name not in set(runs)]
        found, left = [], self.seconds
        own = f"/test_{mutant.module.rpartition('.')[2]}"
        for group in (runs, beside):
            for name in sorted(group, key=lambda name: -self.tests[name].promise * (OWN if own in name else 1)):
                if self.tests[name].seconds <= left:
                    found.append(name)
                    left -= self.tests[name].seconds
        return found

    def settle(self, mutant: Mutant, chosen: Sequence[str], status: int, killer: str) -> None:
        """Keep what came of a mutant."""
        if os.WIFEXITED(status) and status:
            raise RuntimeError(f"cannot be tried: {mutant.key}")
        result = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else killer
        self.results[self.name(mutant)] = result
        if killer in self.tests:
            for name in chosen[: chosen.index(killer) + 1]:
                self.tests[name].tried += 1
            self.tests[killer].kills += 1
        with (KEPT / "results.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps([self.name(mutant), result, "" if result else digest(*test_files())]) + "\n")
        if not result:
            print(f"survived {len(chosen)} tests, line {mutant.lines.start}: {mutant.key}", flush=True)
        if len(self.results) % 50 == 0:
            print(f"{len(self.results)} mutants so far", flush=True)

    def resume(self, start: int = 0) -> None:
        """Read what was kept, from a line on: what survived other tests than these is tried again."""
        now = digest(*test_files())
        for line in self.told()[start:]:
            name, result, tests = json.loads(line)
            if result or tests == now:
                self.results[name] = result
            if killer := self.tests.get(result):
                killer.kills += 1
                killer.tried += 1

    def attempt(self, tried: Sequence[Mutant]) -> None:
        """Try mutants, in an order of which an interrupted run has seen all modules."""
        left = list(tried)
        random.Random(0).shuffle(left)
        for mutant in left:
            if not mutant.inside:
                self.anew(mutant)
        inside = [m for m in left if m.inside]
        done = len(self.told())
        # In a fork, too: what the tests import is never in this process, where the next mutant may be imported.
        if inside and forked(lambda _: self.in_place(inside))[0]:
            raise SystemExit("the process that tries mutants has died; the same command goes on")
        self.resume(done)
        for mutant in inside:
            if self.name(mutant) not in self.results:
                self.anew(mutant)

    def told(self) -> list[str]:
        """The lines of what was kept."""
        kept = KEPT / "results.jsonl"
        return kept.read_text(encoding="utf-8").splitlines() if kept.exists() else []

    def in_place(self, tried: Sequence[Mutant]) -> None:
        """Try mutants of functions, each in a fork of one process that has collected the tests."""

        def serve(items: dict[str, Any], session: Session) -> None:
            gc.freeze()
            for mutant in tried:
                chosen = [name for name in self.chosen(mutant) if name in items]

                def attempt(pipe: int, mutant: Mutant = mutant, chosen: Sequence[str] = tuple(chosen)) -> None:
                    try:
                        exchange(mutant)
                    except ValueError:  # its code has other free variables, as where super() is gone
                        os.write(pipe, ANEW)
                        return
                    meet(items, session, chosen, pipe)

                status, told = forked(attempt, self.limit(chosen))
                if told != ANEW.decode():
                    self.settle(mutant, chosen, status, told)

        if status := collect(sorted({name.partition("::")[0] for name in self.tests}), serve):
            raise RuntimeError(f"pytest ends with {status}")

    def anew(self, mutant: Mutant) -> None:
        """Try a mutant outside of functions: what was imported before would keep the old value."""
        chosen = self.chosen(mutant)

        def attempt(pipe: int) -> None:
            sys.meta_path.insert(0, Loader(mutant))
            files = sorted({name.partition("::")[0] for name in chosen})
            status = collect(files, lambda items, session: meet(items, session, chosen, pipe))
            if status:
                os.write(pipe, b"collection")  # the module cannot be imported

        self.settle(mutant, chosen, *forked(attempt, 30 + self.limit(chosen)))

    def limit(self, chosen: Sequence[str]) -> float:
        return 10 + 3 * sum(self.tests[name].seconds for name in chosen)


def meet(items: dict[str, Any], session: Session, chosen: Sequence[str], pipe: int) -> None:
    """Run tests up to the first that fails, and write its name."""
    rest = [*(items[name] for name in chosen if name in items), None]
    for item, following in pairwise(rest):
        failed = "an exception that ends pytest"
        with contextlib.suppress(BaseException):
            failed = run(item, following, session)
        if failed:
            os.write(pipe, item.nodeid.encode())
            return


def score(tried: Sequence[Mutant], results: Callable[[Mutant], str], listed: dict[str, str]) -> bool:
    """Print what came of the mutants by module; whether the score is high enough and every survivor is listed."""
    print(f"\n{'module':28}{'tried':>7}{'killed':>8}{'equivalent':>12}{'survived':>10}{'score':>8}")
    for module in [*dict.fromkeys(m.module for m in tried), "all"]:
        own = [m for m in tried if module in (m.module, "all")]
        killed = [m for m in own if results(m)]
        alive = [m for m in own if not results(m)]
        equal = [m for m in alive if m.key in listed]
        share = len(killed) / max(1, len(own) - len(equal))
        print(f"{module:28}{len(own):7}{len(killed):8}{len(equal):12}{len(alive) - len(equal):10}{share:8.1%}")
    new = [m for m in alive if m.key not in listed]
    by_signal = sum(not results(m).startswith("tests/") for m in tried if results(m))
    print(f"of those killed, {by_signal} by a time-out or a crash; score: killed / (tried - equivalent)")
    for m in new:
        print(f"survived, line {m.lines.start}: {m.key}")
    return share >= LEAST and not new


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help=f"of {', '.join(MODULES)}; default all", metavar="MODULE")
    parser.add_argument("--sample", type=int, default=40, help="mutants drawn from each module (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--all", action="store_true", help="try every mutant: some hours")
    parser.add_argument("--only", metavar="TEXT", help="try the mutants whose name has this text")
    parser.add_argument("--seconds", type=float, default=30, help="of tests that a mutant meets (default %(default)s)")
    parser.add_argument("--list", action="store_true", help="name the mutants, and try none")
    parser.add_argument("--fresh", action="store_true", help="forget what came of earlier runs")
    options = parser.parse_args(arguments)
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"no module of the campaign: {', '.join(sorted(unknown))}")
    every = {module: mutants(module) for module in options.modules or MODULES}
    listed = tomllib.loads(LISTED.read_text(encoding="utf-8"))["equivalent"]
    known = {m.key for found in every.values() for m in found}
    if stale := [key for key in listed if key.partition(" ")[0] in every and key not in known]:
        parser.error(f"{LISTED.name} lists what is no mutant: {stale}")
    tried = []
    for module, found in every.items():
        if options.only:
            tried += [m for m in found if options.only in m.key]
        elif options.all:
            tried += found
        else:
            drawn = list(found)
            random.Random(f"{options.seed} {module}").shuffle(drawn)  # a larger sample holds a smaller one
            tried += sorted(drawn[: options.sample], key=lambda m: m.index)
    print(f"{len(tried)} of {sum(map(len, every.values()))} mutants", flush=True)
    if options.list or not tried:
        print("\n".join(m.key for m in tried))
        return 0
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests"), str(ROOT / "tools")]
    # Loaded once, before every fork: most of the time of a test would be the import of torch.
    for library in ("torch", "torch.nn", "scipy.stats", "sklearn.isotonic", "pandas", "pytest"):
        importlib.import_module(library)
    if options.fresh:
        (KEPT / "results.jsonl").unlink(missing_ok=True)
    campaign = Campaign(lines_of_tests(), options.seconds)
    campaign.resume()
    campaign.attempt([m for m in tried if campaign.name(m) not in campaign.results])
    campaign.seconds *= AGAIN  # those tests that promised little are still to come
    campaign.attempt([m for m in tried if not campaign.results[campaign.name(m)] and m.key not in listed])
    return 0 if score(tried, lambda m: campaign.results[campaign.name(m)], listed) else 1


if __name__ == "__main__":
    sys.exit(main())
