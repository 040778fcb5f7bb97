"""A plain PyTorch training loop, as one writes it for an experiment like the paper's, to compare speed with.

DataLoader and PIL transforms, float32, the norms of the input gradients logged for every batch, and so the clean
batch's graph kept beside that of the attacked one.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

STEPS = 7  # of PGD


class Images(Dataset[tuple[Tensor, int]]):
    """Images in memory, given out by way of PIL, as torchvision's CIFAR10 does.

    Args:
        x: [N, 3, H, W], uint8.
        y: [N], int64.
        augment: whether to crop and flip at random.
    """

    def __init__(self, x: Tensor, y: Tensor, augment: bool) -> None:
        self.arrays, self.labels = x.permute(0, 2, 3, 1).contiguous().numpy(), y.tolist()
        random = [transforms.RandomCrop(x.shape[-1], padding=4), transforms.RandomHorizontalFlip()] if augment else []
        self.transform = transforms.Compose([*random, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """One image [3, H, W] in [0, 1], and its label."""
        return self.transform(Image.fromarray(self.arrays[index])), self.labels[index]


def pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
    """Projected gradient ascent in l_inf from a random start, in the model's mode."""
    delta = torch.empty_like(x).uniform_(-eps, eps)
    for _ in range(STEPS):
        delta.requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(x + delta), y), delta)
        delta = (delta.detach() + eps / (0.75 * STEPS) * g.sign()).clamp(-eps, eps)
    return x + delta


def objective(model: nn.Module, x: Tensor, y: Tensor, method: str, strength: float, log: list[Tensor]) -> Tensor:
    """The loss to minimise on one batch, of one of the paper's methods; logs the mean norms of the input gradients."""
    x = x.requires_grad_()
    loss = F.cross_entropy(model(x), y)
    penalised = method.startswith("gradient")
    (g,) = torch.autograd.grad(loss, x, create_graph=penalised, retain_graph=True)
    rows = g.flatten(1) * len(x)  # the loss is a mean over the batch
    log.append(torch.stack([rows.norm(1, dim=1).mean(), rows.norm(2, dim=1).mean()]).detach())
    d = x[0].numel()
    if method == "gradient-l1":
        return loss + strength / 2 * rows.norm(1, dim=1).mean()
    if method == "gradient-l2":
        return loss + strength * d**0.5 / 2 * rows.norm(2, dim=1).mean()
    if method == "augment-linf":
        return (loss + F.cross_entropy(model(x.detach() + strength * g.sign()), y)) / 2
    if method == "pgd-linf":
        return F.cross_entropy(model(pgd(model, x.detach(), y, strength)), y)
    return loss


def train(
    model: nn.Module, x: Tensor, y: Tensor, *, method: str, strength: float, batch_size: int, lr: float, workers: int
) -> list[Tensor]:
    """Train for one epoch on the images x [N, 3, H, W], uint8; returns the logged norms."""
    device = next(model.parameters()).device
    on_gpu = device.type == "cuda"
    loader = DataLoader(Images(x, y, True), batch_size, shuffle=True, num_workers=workers, pin_memory=on_gpu)
    optimiser = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=len(loader), cycle_momentum=False)
    log: list[Tensor] = []
    model.train()
    for images, labels in loader:
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        optimiser.zero_grad()
        objective(model, images, labels, method, strength, log).backward()
        optimiser.step()
        schedule.step()
    model.eval()
    return log
