"""Augmentation policies of torchvision, with random choices for each image."""

from collections.abc import Callable

import torch
from torch import Tensor

from ltat.errors import LtatError

Policy = Callable[[Tensor], Tensor]
"""From an image uint8 [ch, H, W] to one of the same shape; its random choices come from torch's CPU generator."""


def randaugment(ops: int = 2, magnitude: int = 8) -> Policy:
    """RandAugment (Cubuk et al., 2020) of ``ops`` operations; (2, 8) is what long-tailed adversarial training uses.

    Args:
        ops: operations one after another, at least 1.
        magnitude: 0..30.
    """
    from torchvision.transforms import v2  # noqa: PLC0415  (a second of import time)

    policy: Policy = v2.RandAugment(num_ops=ops, magnitude=magnitude)
    return policy


def autoaugment() -> Policy:
    """AutoAugment with the policy found on CIFAR-10 (Cubuk et al., 2019), which the field uses on CIFAR-100 too."""
    from torchvision.transforms import v2  # noqa: PLC0415  (a second of import time)

    policy: Policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return policy


POLICIES: dict[str, Callable[[int, int], Policy | None]] = {
    "none": lambda ops, magnitude: None,
    "randaugment": randaugment,
    "autoaugment": lambda ops, magnitude: autoaugment(),
}


def find_policy(name: str, ops: int = 2, magnitude: int = 8) -> Policy | None:
    """The policy of that name; ``ops`` and ``magnitude`` are RandAugment's.

    Raises:
        LtatError: an unknown name.
    """
    if name not in POLICIES:
        raise LtatError(f"unknown augmentation policy {name!r}; choose one of {', '.join(POLICIES)}")
    return POLICIES[name](ops, magnitude)


def altered(images: Tensor, policy: Policy, seeds: Tensor) -> Tensor:
    """Each image after the policy, whose random choices depend on the image's seed alone.

    Args:
        images: uint8 [B, H, W, ch], on any device.
        policy: what to do with each.
        seeds: int64 [B], 0 or more, on the CPU.

    Returns:
        uint8 [B, H, W, ch], contiguous, on the same device.
    """
    changed = torch.empty_like(images)
    with torch.random.fork_rng(devices=[]):
        for k, seed in enumerate(seeds.tolist()):
            torch.default_generator.manual_seed(seed)
            changed[k] = policy(images[k].permute(2, 0, 1)).permute(1, 2, 0)
    return changed
