"""What a user should know before an evaluation begins, or a training that ends with one."""

from collections.abc import Collection

import torch

from ltat.data.split import Dataset, listed
from ltat.engine.precision import emulated
from ltat.evaluation.attacks import left_out


def remarks(data: Dataset, attacks: Collection[str], norm: str, device: torch.device, precision: str) -> list[str]:
    """Lines on a precision that is emulated, files that were not read, and stages of AutoAttack that are left out.

    Args:
        data: whose test images are attacked.
        attacks: by name.
        norm: of the threat model, ``"linf"`` or ``"l2"``.
        device: of the network.
        precision: of the network body.
    """
    read = [f"data: passed over {listed(data.passed_over)}"] if data.passed_over else []
    stages = left_out(attacks, data.num_classes, norm, data.image_shape[:2])
    return [*emulated(device, precision), *read, *stages]
