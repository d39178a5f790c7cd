"""AT-BSL in plain PyTorch, as its published code trains (Yue et al., CVPR 2024): what the benches compare with.

fp32 (with PyTorch's default TF32 convolutions on a GPU), NCHW, eager. For every batch of the DataLoader:

    eval mode:   x' = x + 0.001 N(0, 1), then ten times x' = clip(x' + a sign of the gradient of the mean cross-entropy)
    train mode:  minimise the mean of CE(S(x') + log n, y) by SGD with momentum and weight decay

``torch.autograd.grad`` asks for the gradient of the images alone, so no weight gradient is computed in the attack.
Nothing of ltat is used here; the benches hand in the same network, images and radius.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


@dataclass(frozen=True)
class Recipe:
    """The attack in units of pixels in [0, 1], the optimiser, and the crop's padding."""

    eps: float = 8 / 255
    step: float = 2 / 255
    steps: int = 10
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 128
    pad: int = 4
    flip: bool = True


class Images(Dataset[tuple[Tensor, int]]):
    """Images [N, H, W, ch] in uint8, transformed one by one as torchvision's CIFAR-10 does."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, recipe: Recipe) -> None:
        self.images = images.squeeze(-1) if images.shape[-1] == 1 else images
        self.labels = labels
        crop = [transforms.RandomCrop(images.shape[1], padding=recipe.pad)] if recipe.pad else []
        flip = [transforms.RandomHorizontalFlip()] if recipe.flip else []
        self.transform = transforms.Compose([*crop, *flip, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, k: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.images[k])), int(self.labels[k])


def make_loader(images: np.ndarray, labels: np.ndarray, recipe: Recipe, workers: int) -> DataLoader:
    """Shuffled batches; the workers, if any, live on from epoch to epoch."""
    return DataLoader(
        Images(images, labels, recipe),
        batch_size=recipe.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.SGD:
    """SGD over all parameters."""
    return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)


def pgd_attack(model: nn.Module, x: Tensor, y: Tensor, recipe: Recipe) -> Tensor:
    """Adversarial images [B, ch, H, W] in [0, 1]; the model's mode is the caller's."""
    x_adv = x.detach() + 0.001 * torch.randn_like(x)
    for _ in range(recipe.steps):
        x_adv.requires_grad_()
        loss = F.cross_entropy(model(x_adv), y)
        (grad,) = torch.autograd.grad(loss, [x_adv])
        x_adv = x_adv.detach() + recipe.step * torch.sign(grad)
        x_adv = torch.min(torch.max(x_adv, x - recipe.eps), x + recipe.eps)
        x_adv = torch.clamp(x_adv, 0.0, 1.0)
    return x_adv


def train_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, log_prior: Tensor, recipe: Recipe
) -> Tensor:
    """Attack one batch and take one optimiser step on it; the loss, still on the device."""
    model.eval()
    x_adv = pgd_attack(model, x, y, recipe)
    model.train()
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x_adv) + log_prior, y)
    loss.backward()
    optimizer.step()
    return loss.detach()


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[tuple[Tensor, Tensor]],
    log_prior: Tensor,
    recipe: Recipe,
    device: torch.device,
) -> float:
    """One epoch; the mean loss."""
    losses = []
    for x, y in batches:
        moved = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        losses.append(train_step(model, optimizer, *moved, log_prior, recipe))
    return float(torch.stack(losses).mean())
