"""Theorems 4 and 5, from the path sums and on real networks."""

import math

import numpy as np
import pytest

from advdim import models, theory


@pytest.mark.parametrize("name", ["mlp", "conv_strided"])
def test_theorems_4_and_5_from_the_path_sums_alone(name):
    """|grad|_2 does not depend on d, the l_1 norm grows as sqrt(d), and so does eps_p |grad|_q for every p."""
    options = {} if name == "mlp" else {"depth": 2, "readout": "fc", "padding": "circular", "pooling": "none"}
    one, two = [], []
    for size in (4, 8, 16):
        predicted = theory.predicted_norms(models.build(name, (1, size, size), width=4, **options))
        one.append(predicted[1])
        two.append(predicted[2])
    assert two == pytest.approx([math.sqrt(2)] * 3, rel=1e-12)
    assert np.diff(np.log(one)) / math.log(4) == pytest.approx([0.5, 0.5], rel=1e-12)
