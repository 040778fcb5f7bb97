"""Random networks by the thousand, as plain tensors, and how far a sample's mean is from a number."""

import math

import torch


def z_score(sample, expected):
    """Distance of the sample's mean from a number, in standard errors."""
    return abs(float((sample.mean() - expected) / (sample.std() / math.sqrt(len(sample)))))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(draws, *shape, variance=1.0, seed=0):
    """Independent centred Gaussians, float64; the seed may be a generator."""
    source = seed if isinstance(seed, torch.Generator) else generator(seed)
    return math.sqrt(variance) * torch.randn(draws, *shape, generator=source, dtype=torch.float64)


def last_hidden(draws, d, widths, seed=0, gates="real"):
    """Values [draws, n] of the last hidden layer of random ReLU networks at one image, and their Jacobian [., n, d]."""
    source = generator(seed)
    h = 0.1 + torch.rand(d, generator=generator(99), dtype=torch.float64).expand(draws, d)
    J = torch.eye(d, dtype=torch.float64).expand(draws, d, d)
    for n in widths:
        w = normal(draws, n, h.shape[1], variance=2 / h.shape[1], seed=source)
        z = torch.einsum("bij,bj->bi", w, h)
        G = (z > 0).double() if gates == "real" else torch.randint(0, 2, z.shape, generator=source).double()
        h, J = G * z, G[..., None] * (w @ J)
    return h, J


def conv_entries(draws, d, channels, hidden, seed=0):
    """Gradients [draws, d] of one output, tau = 1: circular 1-D convolutions of kernel 3, real gates, and a readout."""
    source = generator(seed)
    window = (torch.arange(d)[:, None] + torch.arange(-1, 2)) % d
    h = 0.1 + torch.rand(d, generator=generator(99), dtype=torch.float64).expand(draws, 1, d)
    J = torch.eye(d, dtype=torch.float64).expand(draws, 1, d, d)
    for _ in range(hidden):
        kernel = normal(draws, channels, h.shape[1], 3, variance=2 / (3 * h.shape[1]), seed=source)
        z = torch.einsum("mock,mcpk->mop", kernel, h[:, :, window])
        J = torch.einsum("mock,mcpki->mopi", kernel, J[:, :, window]) * (z > 0)[..., None]
        h = z.relu()
    readout = normal(draws, channels, d, variance=1 / (channels * d), seed=source)
    return torch.einsum("mcp,mcpi->mi", readout, J)
