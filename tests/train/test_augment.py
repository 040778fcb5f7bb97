"""Random crops and flips against a loop over pixels, and where training takes them."""

import math

import pytest
import torch
from helpers.training import fit, mlp, seeded, trace

from advdim.train import Recipe, crop_and_flip


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True)])
def test_crops_and_flips_are_those_of_a_loop_over_pixels(dtype, padding, flip):
    n, channels, height, width = 6, 2, 5, 7
    x = (255 * torch.rand(n, channels, height, width, generator=seeded(1), dtype=torch.float64)).to(dtype)
    found = crop_and_flip(x, seeded(), padding=padding, flip=flip)
    assert (found.shape, found.dtype) == (x.shape, dtype)
    generator = seeded()
    down, right = (torch.randint(2 * padding + 1, (n, 1), generator=generator) - padding for _ in range(2))
    flips = torch.randint(2, (n, 1), generator=generator) if flip else torch.zeros(n, 1)
    for i in range(n):
        for r in range(height):
            for c in range(width):
                row = r + int(down[i])
                column = (width - 1 - c if flips[i] else c) + int(right[i])
                inside = 0 <= row < height and 0 <= column < width
                expected = x[i, :, row, column] if inside else torch.zeros(channels, dtype=dtype)
                assert torch.equal(found[i, :, r, c], expected)


def test_shifts_are_uniform_and_flips_even_image_by_image():
    n = 9000
    where = torch.zeros(n, 1, 9, 9)
    where[:, :, 4, 4], where[:, :, 4, 5] = 1, 0.5  # the half is to the right of the one, unless flipped
    moved = crop_and_flip(where, seeded(), padding=3)
    row, column = (
        (moved[:, 0] == 1).flatten(1).float().argmax(1) // 9,
        (moved[:, 0] == 1).flatten(1).float().argmax(1) % 9,
    )
    flipped = moved[torch.arange(n), 0, row, column - 1] == 0.5
    counts = torch.zeros(2, 7, 7)
    for f, r, c in zip(flipped.long().tolist(), (row - 1).tolist(), (column - 1).tolist(), strict=True):
        counts[f, r, c] += 1
    expected = n / counts.numel()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 97 + 4 * math.sqrt(2 * 97)  # 97 degrees of freedom: four standard deviations


def test_training_sees_augmented_images_and_measuring_the_images_themselves(digits):
    net, x = mlp(), digits[0]
    evaluated = []
    net.register_forward_pre_hook(lambda m, inputs: None if m.training else evaluated.append(inputs[0].clone()))
    seen = trace(net, lambda _, images: images.clone())
    fit(net, digits, Recipe(epochs=1, batch_size=300, augment=True, seed=5))
    generator = seeded(5)
    expected = crop_and_flip(x[torch.randperm(300, generator=generator)], generator)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(seen[0], x)
    for images in evaluated:
        assert sorted(images.flatten(1).tolist()) == sorted(x.flatten(1).tolist())


@pytest.mark.parametrize(("shape", "padding"), [((3, 8, 8), 4), ((1, 3, 8, 8), -1)])
def test_augmentation_refuses(shape, padding):
    with pytest.raises(ValueError, match=r"\[N, C, H, W\] and padding"):
        crop_and_flip(torch.zeros(shape), seeded(), padding=padding)
