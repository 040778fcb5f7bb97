"""Measuring a grid from a notebook: what is there already is not measured again, and what failed is left out."""

import pytest
import torch
from helpers.tiny import THREE

from advdim import experiments
from advdim.experiments import grids, runner, spec

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def grid_of_three(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(grids.GRIDS, "initialisation", lambda scale, data: THREE)


def test_a_grid_is_measured_once_and_goes_on(monkeypatch, capsys):
    measured, fail = [], {THREE[2]}

    def measure(one, device, root, checkpoint):
        measured.append(one)
        if one in fail:
            raise ValueError("no number")
        return {"l1": [1.0, 2.0]}

    monkeypatch.setattr(runner, "measure", measure)
    first = experiments.measure_grid("initialisation", "digits", "quick", first=1, device=CPU)
    assert [record["spec"] for record in first] == [spec.as_dict(THREE[0])]
    assert "1/1" in capsys.readouterr().err
    some = experiments.measure_grid("initialisation", "digits", "quick", device=CPU)
    assert [record["spec"] for record in some] == [spec.as_dict(one) for one in THREE[:2]], "the third failed"
    fail.clear()
    assert len(experiments.measure_grid("initialisation", "digits", "quick", device=CPU)) == 3
    assert measured == [*THREE, THREE[2]]


@pytest.mark.parametrize("names", [("initialization", "quick"), ("initialisation", "tiny")])
def test_unknown_names_are_refused_by_value(names):
    experiment, scale = names
    with pytest.raises(ValueError, match=r"'initialization': there are .*4\.1|'tiny': there are quick, medium"):
        experiments.measure_grid(experiment, "digits", scale)
