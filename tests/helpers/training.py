"""Small networks and short runs for the tests of training."""

import torch

from advdim import models, train

STRENGTHS = {
    "none": 0.0,
    "gradient-l1": 0.05,
    "gradient-l2": 0.05,
    "augment-linf": 0.05,
    "augment-l2": 0.05,
    "pgd-linf": 0.05,
    "cross-lipschitz": 0.01,
    "cross-lipschitz-random": 0.01,
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mlp(depth=2):
    return models.build("mlp", (1, 8, 8), depth=depth, width=32)


def conv():
    return models.build("conv_strided", (1, 8, 8), depth=2, width=6, batch_norm=True)


def fit(model, xy, recipe, **options):
    return train.fit(model, *xy, recipe, progress=False, **options)


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def trace(model, look):
    """Collect what `look` finds at every forward pass in train mode."""
    seen = []
    model.register_forward_pre_hook(lambda m, inputs: seen.append(look(m, inputs[0])) if m.training else None)
    return seen
