"""Experiments on a GPU: the numbers of a point agree with the CPU's, and one lost device ends a sweep."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.on_device import given

import advdim as ad
from advdim.experiments import after_training, at_initialisation, runner, store
from advdim.experiments.spec import AfterTraining, AtInitialisation, Images, key
from advdim.models import Network

pytestmark = pytest.mark.gpu(noise=True)

AT_START = AtInitialisation(Images("digits", 8, "copy", 4), Network("conv_strided", width=4, depth=2), seeds=1)
TRAINED = AfterTraining(
    Images("digits", 16, "copy", 4),
    Network("conv_strided", init="torch", width=4, depth=3, batch_norm=True, normalise="batch"),
    ad.train.Recipe("gradient-l1", 0.01, epochs=1, batch_size=10, lr=0.01),
    20,
    4,
    eps=0.02,
    experiment="4.1",
)


def test_the_best_device_is_the_gpu():
    assert ad.device().type == "cuda"


@pytest.mark.parametrize("options", [{}, {"batch_norm": True, "normalise": "batch"}, {"name": "conv_dilated"}])
def test_a_point_at_initialisation_agrees_with_the_cpu(options):
    spec = replace(AT_START, network=replace(AT_START.network, **options))
    found, expected = (at_initialisation.run(spec, torch.device(d)) for d in ("cuda", "cpu"))
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        # A damage is a difference of losses that are 1e-4 apart.
        rel = 0.2 if name.startswith("damage") else 1e-3 if name.startswith(("l", "support")) else 2e-2
        assert found[name] == pytest.approx(values, rel=rel), name


def test_a_point_after_training_agrees_with_the_cpu():
    found, expected = (after_training.run(TRAINED, torch.device(d)) for d in ("cuda", "cpu"))
    assert found.keys() == expected.keys()
    for name in ("l1", "l2", "loss", "bins"):
        assert found[name] == pytest.approx(expected[name], rel=0.05), name
    for name in ("test_l1", "train_l2", "loss"):
        assert found["history"][name] == pytest.approx(expected["history"][name], rel=0.05), name
    assert found["initial"]["l1"] == pytest.approx(expected["initial"]["l1"], rel=1e-3)
    shares = [name for name in expected if name.endswith(("vulnerability", "accuracy", "found"))]
    assert len(shares) == 4 * 2 + 2 * 3 + 1
    for name in shares:  # of 4 images
        assert found[name] == pytest.approx(expected[name], abs=0.51), name
    assert found["deepfool-l2_found"] == pytest.approx(1)
    assert found["deepfool-linf_found"] == pytest.approx(1)


def test_metrics_by_epoch_agree_with_the_cpu():
    found, expected = (
        after_training.by_epoch(g.net, g.x, g.y, eps=0.02, blocks=2)
        for g in (given(d, torch.float64) for d in ("cuda", "cpu"))
    )
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_record_names_the_device(tmp_path):
    assert runner.run([AT_START], tmp_path, device=torch.device("cuda"), command="test") == 0
    record = store.load(tmp_path, key(AT_START))
    assert record["status"] == "done"
    assert record["provenance"]["device"] == torch.cuda.get_device_name(torch.device("cuda"))
    assert all(math.isfinite(v) for values in record["metrics"].values() for v in values)
    assert Path(tmp_path).exists()
