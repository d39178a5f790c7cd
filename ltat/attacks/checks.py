"""Checks of what an attack is given."""

import torch
from torch import Tensor

from ltat.attacks.threat import ThreatModel
from ltat.errors import LtatError


def check_batch(x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """Refuses images [B, …] that are not finite or not in the box, and labels that do not fit them.

    Raises:
        LtatError: naming the offending value.
    """
    if len(x) == 0 or y.shape != x.shape[:1]:
        raise LtatError(f"{len(x)} images but labels of shape {tuple(y.shape)}: give one label per image")
    if y.dtype != torch.int64 or int(y.min()) < 0:
        raise LtatError(f"labels of {y.dtype} from {y.min().item()}: they must be int64 in [0, classes)")
    if x.dtype != torch.float32:
        raise LtatError(f"the images are {x.dtype}: give float32, the dtype of image and perturbation throughout")
    if not bool(torch.isfinite(x).all()):
        raise LtatError(f"{int((~torch.isfinite(x)).sum())} pixels are NaN or infinite: give finite images")
    low, high = threat.box
    if float(x.min()) < low or float(x.max()) > high:
        raise LtatError(
            f"pixels range over [{x.min().item():.4g}, {x.max().item():.4g}], outside the box {threat.box}: "
            "scale the images to it"
        )
    threat.validate(len(x))
