"""All training objectives by one signature, and what their tests share."""

import math

import torch

from advdim.train import objectives

INF = math.inf


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def gradients(net, value):
    """Gradient in all parameters, as one vector."""
    grads = torch.autograd.grad(value, list(net.parameters()), allow_unused=True)
    pairs = zip(net.parameters(), grads, strict=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])


def inputs_of(net, run):
    """The images of every pass that run() makes through the net."""
    seen = []
    handle = net.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    run()
    handle.remove()
    return seen


EVERY = {name: objectives.objective(name) for name in objectives.METHODS if name != "none"} | {
    "gradient-l1.5": lambda m, x, y, s, _: objectives.gradient_penalty(m, x, y, strength=s, q=1.5),
    "gradient-linf": lambda m, x, y, s, _: objectives.gradient_penalty(m, x, y, strength=s, q=INF),
    "augment-l1": lambda m, x, y, s, _: objectives.one_step_augmentation(m, x, y, strength=s, p=1),
    "pgd-l1": lambda m, x, y, s, g: objectives.pgd_training(m, x, y, strength=s, p=1, generator=g),
    "pgd-l2": lambda m, x, y, s, g: objectives.pgd_training(m, x, y, strength=s, p=2, generator=g),
}
