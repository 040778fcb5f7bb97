"""Attacks: one step in any l_p norm (FGM, Lemma 2), projected gradient ascent (PGD), DeepFool and AutoAttack.

All take images in pixel units, [0, 1], and eps in the same units, return the attacked images, and leave the model's
parameters, their gradients and its training state as found. What they give for an image does not depend on how the
images are batched. Perturbations are rounded towards the clean image, so that none exceeds its eps. An image whose
gradient vanishes stays where it is. Clipping to [0, 1] is off by default, as in the paper's protocol.
"""

from .autoattack import auto_attack
from .deep_fool import deepfool
from .fast_gradient import one_step
from .projected_gradient import pgd

__all__ = ["auto_attack", "deepfool", "one_step", "pgd"]
