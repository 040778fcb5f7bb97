"""The same measurements by other libraries, each behind a function of (x, y) or of nothing."""

from __future__ import annotations

import importlib.util
import math
import sys
import types
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Attack = Callable[[Tensor, Tensor], Tensor]

#: Libraries by the name of their module.
LIBRARIES = {
    "Foolbox": "foolbox",
    "Foolbox bare": "foolbox",
    "ART": "art",
    "torchattacks": "torchattacks",
    "adv-lib": "adv_lib",
    "adv-lib DDN": "adv_lib",
}


def missing() -> list[str]:
    """The libraries that cannot be imported."""
    return [name for name, module in LIBRARIES.items() if importlib.util.find_spec(module) is None]


def foolbox(model: nn.Module, kind: str, p: float, eps: float, steps: int, *, bare: bool = False) -> Attack:
    """Foolbox's attack as it is called, or bare, without the last pass, by which it counts successes."""
    import foolbox as fb

    wrapped = fb.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)
    linf = p == math.inf
    if kind == "DeepFool":
        deepfool = fb.attacks.LinfDeepFoolAttack if linf else fb.attacks.L2DeepFoolAttack
        attack = deepfool(steps=steps, candidates=10, overshoot=0.02)
    elif kind == "PGD":
        pgd = fb.attacks.LinfPGD if linf else fb.attacks.L2PGD
        attack = pgd(abs_stepsize=eps / (0.75 * steps), steps=steps, random_start=False)
    else:
        attack = fb.attacks.LinfFastGradientAttack() if linf else fb.attacks.L2FastGradientAttack()
    if bare:
        return lambda x, y: attack.run(wrapped, x, fb.criteria.Misclassification(y), epsilon=eps)
    allowed = None if kind == "DeepFool" else eps
    return lambda x, y: attack(wrapped, x, y, epsilons=allowed)[0 if allowed is None else 1]


def art(model: nn.Module, kind: str, p: float, eps: float, steps: int) -> Attack:
    """The Adversarial Robustness Toolbox's PGD, from and to tensors."""
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    assert kind == "PGD", kind
    shape: tuple[int, ...] = model.image_shape  # type: ignore[assignment]  # advdim's networks know it
    device = "gpu" if next(model.parameters()).is_cuda else "cpu"
    wrapped = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        shape,
        int(model.classes),
        clip_values=(0, 1),
        device_type=device,  # type: ignore[arg-type]
    )
    attack = ProjectedGradientDescentPyTorch(
        wrapped, norm=p, eps=eps, eps_step=eps / (0.75 * steps), max_iter=steps, batch_size=10**6, verbose=False
    )
    return lambda x, y: torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x)


def torchattacks(model: nn.Module, kind: str, p: float, eps: float, steps: int) -> Attack:
    """The PGD of torchattacks."""
    import torchattacks as ta

    assert kind == "PGD", kind
    pgd = ta.PGD if p == math.inf else ta.PGDL2
    attack: Attack = pgd(model, eps=eps, alpha=eps / (0.75 * steps), steps=steps, random_start=False)
    return attack


def adv_lib(model: nn.Module, kind: str, p: float, eps: float, steps: int, *, ddn: bool = False) -> Attack:
    """The PGD in l_inf and the DeepFool of adv-lib; or its DDN, which searches longer for the nearest image in l_2."""
    try:
        import visdom  # noqa: F401  # which it imports, and needs for its plots alone
    except ImportError:
        sys.modules["visdom"] = types.ModuleType("visdom")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from adv_lib import attacks
    if ddn:
        return lambda x, y: attacks.ddn(model, x, y, steps=100, levels=None)
    if kind == "DeepFool":
        return lambda x, y: attacks.df(model, x, y, steps=steps, norm=p)
    assert (kind, p) == ("PGD", math.inf), (kind, p)
    step = eps / (0.75 * steps)
    return lambda x, y: attacks.pgd_linf(model, x, y, eps, steps=steps, random_init=False, absolute_step_size=step)


def norms_one_by_one(model: nn.Module, x: Tensor, y: Tensor, *, backward: bool = False) -> dict[int, Tensor]:
    """Norms of the input gradients, image after image; ``backward`` computes those of the parameters, too."""
    found: dict[int, list[Tensor]] = {1: [], 2: []}
    for image, label in zip(x, y, strict=True):
        leaf = image[None].clone().requires_grad_()
        loss = F.cross_entropy(model(leaf), label[None])
        if backward:
            loss.backward()
            g = leaf.grad
            model.zero_grad()
        else:
            (g,) = torch.autograd.grad(loss, leaf)
        for q, values in found.items():
            values.append(g.norm(q))
    return {q: torch.stack(values) for q, values in found.items()}


def norms_by_vmap(model: nn.Module, x: Tensor, y: Tensor) -> dict[int, Tensor]:
    """Norms of the input gradients, by the per-example gradients of torch.func."""
    state = {name: t.detach() for name, t in (*model.named_parameters(), *model.named_buffers())}

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, state, (image[None],)), label[None])

    g = torch.func.vmap(torch.func.grad(loss))(x, y).flatten(1)
    return {q: g.norm(q, dim=1) for q in (1, 2)}
