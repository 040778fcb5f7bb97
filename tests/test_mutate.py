"""The tool that changes the package to see whether tests notice: its mutants take effect, its list is of mutants."""

import os
import tomllib

import mutate

from advdim.theory.norms import dual


def test_every_mutant_listed_as_equivalent_is_one_and_has_a_reason() -> None:
    listed = tomllib.loads(mutate.LISTED.read_text(encoding="utf-8"))["equivalent"]
    modules = {key.partition(" ")[0] for key in listed}
    keys = {mutant.key for module in modules for mutant in mutate.mutants(module)}
    assert set(listed) - keys == set()
    assert min(map(len, listed.values()), default=99) > 10


def test_whoever_holds_a_function_holds_its_mutant() -> None:
    (mutant,) = (m for m in mutate.mutants("theory.norms") if m.key.endswith("dual: if p == 1:  ->  if p != 1:"))

    def with_mutant(pipe: int) -> None:
        mutate.exchange(mutant)
        os.write(pipe, str(dual(3)).encode())

    assert mutate.forked(with_mutant) == (0, "inf")
    assert dual(3) == 1.5


def test_what_cannot_be_tried_is_told_from_what_is_killed() -> None:
    status, told = mutate.forked(lambda pipe: 1 / 0)
    assert os.WIFEXITED(status)
    assert status != 0
    assert told == ""
