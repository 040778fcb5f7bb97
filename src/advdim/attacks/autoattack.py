"""AutoAttack, the customary measure of a trained network's robustness, by the library pyautoattack."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor, nn

from .. import data
from ..measure.gradients import check_classes, warn_of_train_mode
from ..models import fast
from ..theory import norms
from .perturbation import check_precision, check_range, per_image, perturbed, refuse_non_finite

_NAMES = {1: "L1", 2: "L2", math.inf: "Linf"}


def auto_attack(
    model: nn.Module, x: Tensor, y: Tensor, *, p: float, eps: float, seed: int = 0, batch_size: int = 250
) -> Tensor:
    r"""AutoAttack, standard version (Croce and Hein, 2020; for p = 1, 2021): four attacks without parameters to tune.

    They run in turn, each on the images that those before it left: APGD on the cross-entropy; APGD targeted at nine
    other classes (five for p = 1); FAB, targeted at nine; and Square, which takes 5000 queries and no gradients. All of
    them clip to [0, 1] and compute in float32. This wants ``pip install 'advdim[autoattack]'``.

    Args:
        model: maps [N, C, H, W] to [N, K] logits (not probabilities), K at least 4.
        x: [N, C, H, W], floating point, in [0, 1].
        y: [N], int64 labels.
        p: exponent of the attacker's norm: 1, 2 or inf.
        eps: size of the perturbations in the p-norm, in pixel units, above 0.
        seed: of all draws; the global generators are left as found.
        batch_size: images per pass. The draws depend on it, and on which images are attacked together.

    Returns:
        Like x. Images that are misclassified already, or that no attack changed the class of, are as they were: this is
        an attack on the accuracy, and no measure of how far the loss can be raised.

    Raises:
        ImportError: if pyautoattack is not installed.
        TypeError: as :func:`advdim.attacks.one_step`.
        ValueError: as :func:`advdim.attacks.one_step`; for another p, and for a model of fewer than 4 classes.

    Warns:
        UserWarning: as :func:`advdim.attacks.one_step`. The library logs its own doubts, as ``auto-attack``.
    """
    if p not in _NAMES:
        raise ValueError(f"AutoAttack is defined for p = 1, 2 and inf, got p = {p}; one_step takes any p >= 1")
    data.check(x, y)
    check_precision(x)
    check_range(x, clip=True)
    warn_of_train_mode(model)
    radius = per_image(eps, "eps", x)
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise ImportError("AutoAttack is an extra: pip install 'advdim[autoattack]'") from error

    clean, trace = x.detach().float().contiguous(), sys.gettrace()
    with fast.at_rest(model) as net:

        def forward(images: Tensor) -> Tensor:
            outputs: Tensor = net(images.to(x.dtype))
            # The library would take the largest entry for a class, NaN or not; of its own images some may be NaN.
            if bool((outputs.isnan().any(1) & images.isfinite().flatten(1).all(1)).any()):
                raise ValueError(
                    "the model has NaN outputs at attacked images: no attack can follow them, and the images would "
                    "seem robust"
                )
            return outputs.float()

        with torch.no_grad():
            logits = torch.cat([net(images.to(x.dtype)) for images in torch.split(clean, batch_size)])
        refuse_non_finite(torch.where(logits.isnan(), math.nan, 0.0))  # -inf rules a class out
        classes = logits.shape[1]
        if classes < 4:
            raise ValueError(f"AutoAttack compares the largest 4 logits, the model has {classes}; pgd takes any number")
        check_classes(y, classes)
        library = AutoAttack(forward, norm=_NAMES[p], eps=float(eps), seed=seed, device=x.device)
        for part in (library.apgd_targeted, library.fab):
            part.n_target_classes = min(part.n_target_classes, classes - 1)
        try:
            with torch.random.fork_rng(range(torch.cuda.device_count())):
                found, _ = library.run_standard_evaluation(clean, y, batch_size=batch_size)
        finally:
            sys.settrace(trace)  # it traces one pass, and so would end the tracing of a debugger or a coverage tool
    delta = norms.project((found - clean).to(x.dtype), p, eps)
    return perturbed(x.detach(), delta, p, radius, clip=True)
