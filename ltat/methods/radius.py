"""RobustLT's radius (Zhang et al., CVPR 2026; arXiv 2605.13395): a larger ball around images of rarer classes.

With n_c images of class c, N in all, and epoch e of E,

    eps_c = rho(e) * [ (1 - alpha) + tau * g_c ] * eps,    g_c = sqrt( log(n_max / n_c) ),
    tau = alpha / sum_c (n_c / N) g_c,                     rho(e) = min( (e - 1) / (beta_r E), 1 )

so that without the ramp rho the mean radius over the images stays eps. The step size scales with the radius. Only the
training attack uses this radius. The reference code draws a random start in the ball of eps; here it is drawn in the
ball of eps_c.
"""

import torch
from torch import Tensor

from ltat.attacks import ThreatModel
from ltat.config import RadiusSection
from ltat.methods.step import Step


def radius_scale(settings: RadiusSection, step: Step) -> Tensor | None:
    """The factor on radius and step size of each image of the batch, fp32 [B]; ``None`` where all have one radius."""
    if not (settings.share or settings.ramp_share):
        return None
    scale = ramp(settings.ramp_share, step.epoch, step.epochs) * class_radii(step.class_counts, settings.share)
    return scale.float()[step.batch.labels]


def class_radii(class_counts: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) + tau * g_c in float64, [C]; 1 for every class where all classes have the same size.

    Args:
        class_counts: n_c, [C]; a class without images has the radius of a class with one image.
        alpha: from 0 (the same radius for every class) to 1 (radius 0 for the largest class).
    """
    n = class_counts.double()
    g = (n.max() / n.clamp(min=1)).log().sqrt()
    mean_g = (n * g).sum() / n.sum()
    return torch.where(mean_g > 0, 1 - alpha + alpha * g / mean_g, 1.0)


def ramp(share: float, epoch: int, epochs: int) -> float:
    """rho: from 0 in the first epoch to 1 after the share ``share`` (beta_r) of the epochs; always 1 for share 0."""
    return min((epoch - 1) / (share * epochs), 1.0) if share else 1.0


def scaled(threat: ThreatModel, step: float | Tensor, scale: Tensor | None) -> tuple[ThreatModel, float | Tensor]:
    """The ball and the step size, those of image i multiplied by ``scale[i]``, fp32 [B]; unchanged without a scale."""
    if scale is None:
        return threat, step
    return ThreatModel(norm=threat.norm, eps=threat.eps * scale, box=threat.box), step * scale
