"""What the tests of the theory compare it with: plain autograd, and paths counted one by one in pure Python."""

import itertools

import numpy as np
import torch
from torch import nn


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def logit_gradient(net, x, k=0):
    """Gradient of one output by plain autograd, without the package."""
    x = x.clone().requires_grad_()
    return torch.autograd.grad(net(x)[:, k].sum(), x)[0]


# Paths, counted one by one in pure Python: a neuron is (channel, row, column), an edge carries a weight's second moment


def source(index, size, mode):
    """The pixel that a padded coordinate copies, or None where it is a zero."""
    if 0 <= index < size:
        return index
    if mode == "zeros":
        return None
    if mode == "circular":
        return index % size
    return -index if index < 0 else 2 * (size - 1) - index


def edges(layer, shape):
    """The inputs of every neuron of a layer, as {neuron: [(input neuron, factor)]}, and the layer's shape."""
    channels, height, width = shape
    if isinstance(layer, nn.Linear):
        inputs = list(itertools.product(range(channels), range(height), range(width)))
        return {(k, 0, 0): [(i, layer.weight_law.variance) for i in inputs] for k in range(layer.out_features)}, (
            layer.out_features,
            1,
            1,
        )
    kernel, stride = layer.kernel_size, layer.stride
    if isinstance(layer, nn.Conv2d):
        (rows, columns), steps, (pad, _), (dilation, _) = kernel, stride, layer.padding, layer.dilation
        mode, out, step = layer.padding_mode, layer.out_channels, steps[0]
    else:  # a pooling window, over one channel
        (rows, columns), pad, dilation, mode, out, step = (kernel, kernel), 0, 1, "zeros", channels, stride
    reach = dilation * (rows - 1) + 1
    high = (height + 2 * pad - reach) // step + 1
    wide = (width + 2 * pad - dilation * (columns - 1) - 1) // step + 1
    found = {}
    for o, a, b in itertools.product(range(out), range(high), range(wide)):
        taps = []
        for i, u, v in itertools.product(range(channels), range(rows), range(columns)):
            row = source(step * a + dilation * u - pad, height, mode)
            column = source(step * b + dilation * v - pad, width, mode)
            if row is None or column is None or (not isinstance(layer, nn.Conv2d) and i != o):
                continue
            if isinstance(layer, nn.Conv2d):
                factor = layer.weight_law.variance
            else:  # an average has weights 1/k; a maximum lets one of k inputs through, each with chance 1/k
                factor = 1 / kernel**4 if isinstance(layer, nn.AvgPool2d) else 1 / kernel**2
            taps.append(((i, row, column), factor))
        found[o, a, b] = taps
    return found, (out, high, wide)


def count_paths(net, k=0):
    """Sum, over all paths from each pixel to output k, of the product of variances and of 1/2 per ReLU."""
    shape, levels, gates = net.image_shape, [], []
    for layer in net:
        if isinstance(layer, nn.ReLU):
            gates[-1] *= 0.5
        elif not isinstance(layer, nn.Flatten):
            inputs, shape = edges(layer, shape)
            levels.append(inputs)
            gates.append(1.0)
    moment, paths = np.zeros(net.image_shape), 0

    def walk(level, neuron, product):
        nonlocal paths
        if level < 0:
            moment[neuron] += product
            paths += 1
            return
        for before, factor in levels[level][neuron]:
            walk(level - 1, before, product * factor * gates[level])

    walk(len(levels) - 1, (k, 0, 0), 1.0)
    return moment, paths
