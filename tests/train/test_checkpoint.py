"""An interrupted run resumes to the weights of an uninterrupted one, and a file that cannot be resumed is refused."""

import json
import os
import random
import signal
from dataclasses import asdict, replace

import pytest
import torch
from helpers.processes import python
from helpers.training import fit

from advdim import data, models, train
from advdim.train import Recipe, checkpoint

PGD = Recipe("pgd-linf", 0.05, epochs=3, batch_size=32, augment=True, validation=0.1, keep="best", seed=4)
RECIPES = {
    "pgd": PGD,
    "one-cycle": Recipe(epochs=3, batch_size=32, augment=True, weight_decay=0.01),
    "double": Recipe("gradient-l1", 0.05, epochs=3, batch_size=32),
    "paper": replace(train.PAPER, epochs=5, halve_every=2, batch_size=32),
    "stopped": Recipe(epochs=9, batch_size=32, lr=1e-6, validation=0.1, early_stopping=2),
}


@pytest.fixture(scope="module")
def digits():
    return data.load("digits", n=120)


def conv(**options):
    return models.build("conv_strided", (1, 8, 8), **({"depth": 2, "width": 6, "batch_norm": True} | options))


def lasting(result):
    rows = [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]
    return rows, result.best_epoch, result.stopped_early


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class Interrupted(Exception):
    pass


NEVER = -1


def interrupt(model, at):
    """Raise at a forward pass in train mode, counted from 0; never at NEVER.

    Batch-norms of a network with hooks are not folded when it is measured: a run to be compared bit for bit has one.
    """
    passes = iter(range(10**6))

    def hook(m, _):
        if m.training and next(passes) == at:
            raise Interrupted

    model.register_forward_pre_hook(hook)


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("every", [None, 1, 3])
def test_a_run_interrupted_again_and_again_ends_as_the_uninterrupted_one(digits, tmp_path, name, every):
    recipe, path = RECIPES[name], tmp_path / "run.pt"
    whole = conv()
    interrupt(whole, NEVER)
    expected = fit(whole, digits, recipe)
    per_step = 8 if name == "pgd" else 1
    for at in (6, 7, 5):  # steps from where it resumes; an epoch has four
        model = conv()
        interrupt(model, per_step * at)
        try:
            fit(model, digits, recipe, checkpoint=path, checkpoint_every=every)
        except Interrupted:
            assert not model.training
    resumed = conv()
    interrupt(resumed, NEVER)
    assert lasting(fit(resumed, digits, recipe, checkpoint=path, checkpoint_every=every)) == lasting(expected)
    assert same(resumed, whole)
    assert [f.name for f in tmp_path.iterdir()] == ["run.pt"]
    if name == "stopped":
        assert expected.stopped_early


KILLED = """
import json, os, signal, sys
from advdim import data, models, train
net = models.build("conv_strided", (1, 8, 8), depth=2, width=6, batch_norm=True)
passes = iter(range(10**6))
def hook(model, _):
    if model.training and next(passes) == 8 * 6 + 3:
        print("half-way", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
net.register_forward_pre_hook(hook)
recipe = train.Recipe(**json.loads(sys.argv[2]))
train.fit(net, *data.load("digits", n=120), recipe, checkpoint=sys.argv[1], checkpoint_every=int(sys.argv[3]))
"""


@pytest.mark.process
@pytest.mark.skipif(os.name == "nt", reason="SIGKILL is a Unix signal")
@pytest.mark.parametrize("every", [1, 1000])
def test_a_killed_process_resumes_bit_for_bit(digits, tmp_path, every):
    path = tmp_path / "run.pt"
    script = f"import torch; torch.set_num_threads({torch.get_num_threads()})\n{KILLED}"
    assert python(script, path, json.dumps(asdict(PGD)), every) == (-signal.SIGKILL, "half-way\n")
    resumed, whole = conv(), conv()
    interrupt(whole, NEVER)
    passes = []
    resumed.register_forward_pre_hook(lambda m, _: passes.append(0) if m.training else None)
    assert lasting(fit(resumed, digits, PGD, checkpoint=path)) == lasting(fit(whole, digits, PGD))
    assert same(resumed, whole)
    assert len(passes) == 8 * (6 if every == 1 else 8)  # of twelve steps, six were done, four in whole epochs


def test_a_finished_run_is_loaded(digits, tmp_path):
    first, again = conv(), conv()
    result = fit(first, digits, PGD, checkpoint=tmp_path / "new" / "run.pt")
    interrupt(again, 0)
    assert fit(again, digits, PGD, checkpoint=tmp_path / "new" / "run.pt").history == result.history
    assert same(first, again)


def test_a_failed_write_leaves_the_checkpoint_before(digits, tmp_path, monkeypatch):
    path, writes = tmp_path / "run.pt", iter(range(10**6))
    replace_file = os.replace

    def fail_third(a, b):
        if next(writes) == 2:
            raise OSError("disk full")
        replace_file(a, b)

    monkeypatch.setattr(os, "replace", fail_third)
    with pytest.raises(OSError, match="disk full"):
        fit(conv(), digits, PGD, checkpoint=path, checkpoint_every=1)
    resumed, whole = conv(), conv()
    fit(resumed, digits, PGD, checkpoint=path)
    fit(whole, digits, PGD)
    assert same(resumed, whole)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(digits, tmp_path, share):
    path, recipe = tmp_path / "run.pt", Recipe(epochs=1)
    fit(conv(), digits, recipe, checkpoint=path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"run\.pt is no readable checkpoint .*: delete it"):
        fit(conv(), digits, recipe, checkpoint=path)


def test_every_flipped_bit_is_noticed(digits, tmp_path):
    """torch.load notices none of them in the weights."""
    path, recipe = tmp_path / "run.pt", Recipe(epochs=1)
    fit(conv(), digits, recipe, checkpoint=path)
    content = path.read_bytes()
    for bit in random.Random(0).sample(range(8 * len(content)), 40):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(checkpoint.DamagedCheckpointError, match=r"run\.pt is no readable checkpoint .*checksum"):
            fit(conv(), digits, recipe, checkpoint=path)
        assert path.read_bytes() == flipped


def test_a_pipe_is_no_checkpoint(digits, tmp_path):
    os.mkfifo(tmp_path / "run.pt")
    with pytest.raises(checkpoint.DamagedCheckpointError, match=r"run\.pt is a pipe"):
        fit(conv(), digits, Recipe(epochs=1), checkpoint=tmp_path / "run.pt")


@pytest.mark.parametrize("content", [b"epoch 3\n", None, [1, 2], {"identity": 1}])
def test_a_file_of_something_else_is_refused(digits, tmp_path, content):
    path = tmp_path / "run.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match="no readable checkpoint"):
        fit(conv(), digits, Recipe(epochs=1), checkpoint=path)


def spoilt(tensor):
    changed = tensor.clone()
    changed.view(-1)[0] += 1
    return changed


def test_the_checkpoint_of_another_run_is_refused(digits, tmp_path):
    (x, y), recipe, path = digits, Recipe(epochs=1), tmp_path / "run.pt"
    tests = {"x_test": x[:20], "y_test": y[:20]}

    def run(net=None, pair=digits, recipe=recipe, **options):
        fit(net or conv(), pair, recipe, checkpoint=path, **(tests | options))

    run()
    before = path.read_bytes()
    for difference, other in {
        r"lr = 0\.05 there and 0\.1 here": {"recipe": replace(recipe, lr=0.1)},
        r"seed = 0 there and 1 here": {"recipe": replace(recipe, seed=1)},
        r"eval_images = 1000 there and 10 here": {"eval_images": 10},
        r"eval_every = 1 there and 2 here": {"eval_every": 2},
        r"\(another x\)": {"pair": (spoilt(x), y)},
        r"\(another y\)": {"pair": (x, spoilt(y) % 10)},
        r"\(another x_test\)": {"x_test": spoilt(x[:20])},
        r"\(another x_test; another y_test\)": {"x_test": None, "y_test": None},
        r"\(another model\)": {"net": conv(seed=1)},
        r"another model": {"net": conv(padding="zeros")},  # the same weights
    }.items():
        with pytest.raises(ValueError, match=rf"run\.pt is the checkpoint of another run .*{difference}"):
            run(**other)
    assert path.read_bytes() == before
    run()
