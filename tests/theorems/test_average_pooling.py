"""An average over k inputs keeps 1/k of the paths' mass."""

import pytest

from advdim import models, theory


@pytest.mark.parametrize("k", [1, 2, 4])
def test_an_average_over_k_inputs_keeps_one_in_k(k):
    options = {"width": 2, "padding": "circular"}
    net = models.build("conv_strided", (1, 8, 8), depth=k, pooling="average", readout="fc", **options)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2 / 4 ** (k - 1), rel=1e-12)
    net = models.build("conv_strided", (1, 2 * k, 2 * k), depth=1, readout="average", **options)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2 / (2 * k) ** 2, rel=1e-12)
    net = models.build("conv_strided", (1, 2 * k, 2 * k), depth=1, readout="max", **options)
    assert float(theory.path_second_moment(net).sum()) == pytest.approx(2, rel=1e-12)
