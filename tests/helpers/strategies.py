"""What the properties of norms are tested on: tensors, exponents, and random directions."""

import math

import numpy as np
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

EXPONENTS = (1, 1.01, 1.25, 1.5, 2, 3, 4, 10, 100, math.inf)
exact = settings(derandomize=True, deadline=None, max_examples=60)
values = st.floats(-10, 10).filter(lambda v: v == 0 or abs(v) > 1e-6)
exponents = st.one_of(st.sampled_from(EXPONENTS), st.floats(1.001, 50))
matrices = hnp.arrays(np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=7), elements=values)


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dot(a, b):
    return (a * b).flatten(1).sum(1)
