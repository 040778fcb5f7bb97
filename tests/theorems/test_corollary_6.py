"""Corollary 6: in convolutional networks the sum over all paths is that of the readout, whatever the padding."""

import pytest

from advdim import models, theory


@pytest.mark.parametrize("padding", ["reflect", "circular"])
@pytest.mark.parametrize("pooling", ["stride", "none", "max"])
@pytest.mark.parametrize(("init", "c"), [("he", 2), ("he_unit", 1), ("ntk", 2), ("torch", None)])
def test_the_sum_of_all_paths_is_that_of_the_readout(padding, pooling, init, c):
    """Theorem 5: 1/in-degree times in-degree at every neuron, whatever strides, dilations, depths and sizes."""
    for name, size, depth, base in (
        ("conv_strided", 8, 1, None),
        ("conv_strided", 9, 3, None),
        ("conv_dilated", 8, 4, 8),
        ("conv_dilated", 24, 2, 8),
        ("conv_dilated", 32, 3, 8),
    ):
        net = models.build(
            name,
            (3, size, size),
            init=init,
            width=3,
            depth=depth,
            padding=padding,
            pooling=pooling,
            readout="fc",
            base_size=base,
        )
        # Under "torch" each hidden layer has a sixth of He's variance, and so has the readout.
        expected = 2 / 6 ** (depth + 1) if c is None else c
        if pooling == "max" and size == 9:
            expected = None  # a window that does not divide the map leaves its last row and column out
        total = float(theory.path_second_moment(net).sum())
        if expected is None:
            assert total < c if c else total
        else:
            assert total == pytest.approx(expected, rel=1e-12)
