"""Each rule's law, moments and independence; PyTorch's own layers and the He function as oracles.

Thresholds are 4 standard errors, or a Kolmogorov-Smirnov p-value of 1e-4; seeds are fixed, so the outcome is too.
"""

import copy
import math

import pytest
import torch
from scipy import stats
from torch import nn

from advdim import measure, models
from advdim.models import initialise

SHAPE = (3, 8, 8)
WIDTH = 32


def net(init, seed=0, **options):
    return models.build("conv_strided", SHAPE, init=init, seed=seed, width=WIDTH, depth=2, **options)


def expected_variances(init, readout_in):
    """Closed forms, written out: the image has 3 channels, kernels 9 entries."""
    hidden = [2 / 27, 2 / (9 * WIDTH)]
    return {
        "he": [*hidden, 2 / readout_in],
        "ntk": [*hidden, 2 / readout_in],
        "he_unit": [*hidden, 1 / readout_in],
        "mup": [*hidden, 2 / (readout_in * WIDTH)],
        "torch": [1 / 81, 1 / (27 * WIDTH), 1 / (3 * readout_in)],
    }[init]


@pytest.mark.parametrize("readout", ["fc", "average"])
@pytest.mark.parametrize("init", initialise.RULES)
def test_law_of_the_weights(init, readout):
    model = net(init, readout=readout)
    layers = initialise.weight_layers(model)
    readout_in = WIDTH * 4 * 4 if readout == "fc" else WIDTH
    assert [initialise.in_degree(layer) for layer in layers] == [27, 9 * WIDTH, readout_in]
    for layer, variance in zip(layers, expected_variances(init, readout_in), strict=True):
        w = layer.weight.detach().double().flatten()
        n = len(w)
        assert abs(w.mean()) < 4 * math.sqrt(variance / n)
        fourth = 9 / 5 if init == "torch" else 3  # E w^4 / (E w^2)^2 of the uniform and of the normal law
        assert abs(w.square().mean() / variance - 1) < 4 * math.sqrt((fourth - 1) / n)
        law = stats.uniform(-math.sqrt(3), 2 * math.sqrt(3)) if init == "torch" else stats.norm
        assert stats.kstest(w.numpy() / math.sqrt(variance), law.cdf).pvalue > 1e-4
        assert layer.weight_law.variance == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("init", initialise.RULES)
def test_biases(init):
    for layer in initialise.weight_layers(net(init)):
        if init == "torch":
            bound = 1 / math.sqrt(initialise.in_degree(layer))
            assert 0.5 * bound < layer.bias.abs().max() < bound
        else:
            assert not layer.bias.any()


@pytest.mark.parametrize("init", initialise.RULES)
def test_seeds(init):
    model, again, other = net(init, seed=1), net(init, seed=1), net(init, seed=2)
    for a, b, c in zip(model.parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.ndim > 1:
            correlation = torch.corrcoef(torch.stack([a.flatten(), c.flatten()]).detach().double())[0, 1]
            assert abs(correlation) < 4 / math.sqrt(a.numel())


@pytest.mark.parametrize("init", initialise.RULES)
def test_layers_and_neurons_are_drawn_apart(init):
    """(H4) and (H5): no weights of two layers, nor of two neurons, nor of one neuron, are correlated."""
    first, second, _ = (layer.weight.detach().double() for layer in initialise.weight_layers(net(init)))
    n = min(first.numel(), second.numel())
    between = torch.corrcoef(torch.stack([first.flatten()[:n], second.flatten()[:n]]))[0, 1]
    assert abs(between) < 4 / math.sqrt(n)
    for table in (second.flatten(1), second.flatten(1).T):
        matrix = torch.corrcoef(table)
        off = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
        # Mean square of sample correlations of independent variables: 1 / (samples - 1).
        assert float(off.square().mean()) * (table.shape[1] - 1) == pytest.approx(1, abs=0.1)


def test_the_global_generator_is_neither_used_nor_touched():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    model = net("he")
    torch.manual_seed(1)
    for a, b in zip(model.parameters(), net("he").parameters(), strict=True):
        assert torch.equal(a, b)
    initialise.he_(model, torch.Generator().manual_seed(5))
    torch.set_rng_state(state)
    assert torch.equal(torch.rand(3), expected)


def test_torch_rule_is_that_of_torchs_own_layers():
    """The same numbers as reset_parameters draws from the same seed."""
    model = net("torch", seed=11)
    torch.manual_seed(11)
    for layer in initialise.weight_layers(model):
        own = copy.deepcopy(layer)
        own.reset_parameters()
        torch.testing.assert_close(layer.weight, own.weight, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(layer.bias, own.bias, rtol=1e-5, atol=1e-7)


def test_grouped_convolutions_count_their_own_inputs():
    layer = nn.Conv2d(8, 16, (3, 5), groups=4)
    assert initialise.in_degree(layer) == 2 * 15
    initialise.he_(nn.Sequential(layer), torch.Generator().manual_seed(0))
    ratio = float(layer.weight.detach().square().mean()) * 15
    assert abs(ratio - 1) < 4 * math.sqrt(2 / layer.weight.numel())


def test_ntk_is_he_as_a_function_and_trains_the_unscaled_weights():
    he, ntk = (net(init, seed=3, readout="fc") for init in ("he", "ntk"))
    x = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(he(x), ntk(x), rtol=1e-4, atol=1e-5)
    y = torch.arange(4)
    torch.testing.assert_close(
        measure.input_gradients(he, x, y), measure.input_gradients(ntk, x, y), rtol=1e-3, atol=1e-5
    )
    for layer in initialise.weight_layers(ntk):
        raw = layer.parametrizations.weight.original
        assert abs(float(raw.detach().square().mean()) - 1) < 4 * math.sqrt(2 / raw.numel())
    # The chain rule through w = s raw: a step on raw moves w by s^2 of what it moves under "he".
    for model in (he, ntk):
        model(x).sum().backward()
    for a, b in zip(initialise.weight_layers(he), initialise.weight_layers(ntk), strict=True):
        scale = math.sqrt(2 / initialise.in_degree(a))
        torch.testing.assert_close(scale * a.weight.grad, b.parametrizations.weight.original.grad, rtol=1e-3, atol=1e-3)


def test_mup_outputs_shrink_with_width_and_he_outputs_do_not():
    """The variance of an output over seeds is E |h|^2 / n times the gain: 1 / width of the He net's."""
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    ratios = []
    for width in (8, 32):
        outputs = {
            init: torch.stack(
                [models.build("mlp", (1, 4, 4), init=init, seed=s, width=width)(x)[0] for s in range(40)]
            ).detach()
            for init in ("he", "mup")
        }
        ratios.append(float(outputs["mup"].square().sum() / outputs["he"].square().sum()) * width)
    assert ratios == pytest.approx([1, 1], rel=1e-4)  # the same draws, scaled


def test_mup_of_a_single_layer_takes_its_inputs_as_the_width():
    readout = initialise.weight_layers(models.build("mlp", (1, 20, 20), init="mup", depth=1))[0]
    assert readout.weight_law.variance == 2 / 400**2


def test_he_keeps_the_scale_of_activations_through_depth():
    """(H3) in act: the mean over seeds of |h_l|^2 / n_l is that of the input, 2 |x|^2 / d, before each ReLU."""
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    squares = []
    for seed in range(200):
        model, h, row = models.build("mlp", (1, 4, 4), seed=seed, width=32, depth=5), x, []
        with torch.no_grad():
            for layer in model:
                h = layer(h)
                if isinstance(layer, nn.Linear):
                    row.append(float(h.square().mean()))
        squares.append(row)
    table = torch.tensor(squares, dtype=torch.float64) / float(2 * x.square().mean())
    error = table.std(0) / math.sqrt(len(table))
    assert ((table.mean(0) - 1).abs() < 4 * error).all()
    assert error.max() < 0.1


@pytest.mark.parametrize("init", initialise.RULES)
def test_a_parametrised_weight_is_refused_rather_than_left_as_it_was(init):
    """Writing into a computed weight would change nothing, silently."""
    model = net("ntk")
    with pytest.raises(ValueError, match=r"Conv2d.*parametri"):
        initialise.RULES[init](model, torch.Generator().manual_seed(9))


def test_a_later_change_of_the_weights_shows_in_the_fingerprint():
    model = net("he")
    layer = initialise.weight_layers(model)[-1]
    assert initialise.weight_total(layer) == layer.weight_law.total
    with torch.no_grad():  # a change whose entries add up to 0, as a step on the cross-entropy of a readout does
        layer.weight[0] += 0.01
        layer.weight[1] -= 0.01
    assert initialise.weight_total(layer) != pytest.approx(layer.weight_law.total, rel=1e-4)


def test_the_width_of_mup_is_that_of_the_last_hidden_layer():
    net = nn.Sequential(nn.Flatten(), *(nn.Linear(a, b) for a, b in ((16, 3), (3, 7), (7, 5), (5, 2))))
    initialise.mup_(net, torch.Generator().manual_seed(0))
    assert [m.weight_law.variance for m in net[1:]] == [2 / 16, 2 / 3, 2 / 7, 2 / (5 * 5)]
