"""The modules of our networks that PyTorch lacks."""

from __future__ import annotations

from torch import Tensor, nn


class Normalise(nn.Module):
    """First layer that maps images in [0, 1] to (x - mean) / std per channel, so that eps stays in pixel units.

    Args:
        mean: [C], per channel.
        std: [C], positive.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images [N, C, H, W], normalised."""
        return (x - self.mean) / self.std


class Residual(nn.Module):
    """A residual block, shortcut(x) + scale * branch(x); a post-activation network puts a ReLU after it.

    Args:
        branch: layers that keep the shape of x, or give that of the shortcut.
        scale: factor of the branch.
        shortcut: default the identity.
    """

    def __init__(self, *branch: nn.Module, scale: float = 1.0, shortcut: nn.Module | None = None) -> None:
        super().__init__()
        self.branch = nn.Sequential(*branch)
        self.shortcut = shortcut or nn.Identity()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Values [N, ...], of the shortcut's shape."""
        out: Tensor = self.shortcut(x) + self.scale * self.branch(x)
        return out


class Net(nn.Sequential):
    """A sequential network that knows the shape of its images and refuses others.

    Attributes:
        image_shape: (C, H, W).
        classes: number of outputs.
    """

    def __init__(self, *layers: nn.Module, image_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__(*layers)
        self.image_shape = image_shape
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, C, H, W]; raises ValueError for images of another shape."""
        if tuple(x.shape[1:]) != self.image_shape:
            raise ValueError(
                f"the network takes images {self.image_shape}, got {tuple(x.shape[1:])}: resize them first"
            )
        for layer in self:
            x = layer(x)
        return x

    def __getitem__(self, index: slice | int) -> nn.Module:
        """One layer, or some of them as a plain sequence (for the maps inside the network, say)."""
        return nn.Sequential(*list(self)[index]) if isinstance(index, slice) else super().__getitem__(index)
