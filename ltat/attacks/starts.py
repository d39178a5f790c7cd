"""Where an attack begins. The published methods differ here, and the difference shows in their numbers.

Every start maps (x, threat, generator) to a new tensor. Only ``uniform_clamp`` and ``zero`` are sure to lie
in the box; the others take their first gradient unclamped, as the reference codes do. For ℓ2, uniform means
uniform in the ball (a Gaussian direction times U^(1/d)).
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ltat.attacks.threat import ThreatModel
from ltat.errors import LtatError
from ltat.seeding import Noise, SharedGenerator

Start = Callable[[Tensor, ThreatModel, Noise | None], Tensor]

START_NOISE = 0.001


def gauss(x: Tensor, threat: ThreatModel, generator: Noise | None) -> Tensor:
    """x + 0.001·N(0, 1), unclamped: AT-BSL, TRADES, MART, TAET, RSLAD, AdaAD, IGDM in training."""
    return x + START_NOISE * _noise(torch.randn, x, generator)


def uniform(x: Tensor, threat: ThreatModel, generator: Noise | None) -> Tensor:
    """x + U(−ε, ε), unclamped: REAT, ARD, and the evaluations of AT-BSL and TRADES."""
    return x + threat.radius(x) * _uniform_in_unit_ball(x, threat.norm, generator)


def uniform_clamp(x: Tensor, threat: ThreatModel, generator: Noise | None) -> Tensor:
    """``uniform``, then clamped to the box: AWP, Rice et al., torchattacks."""
    return uniform(x, threat, generator).clamp_(*threat.box)


def pos_uniform(x: Tensor, threat: ThreatModel, generator: Noise | None) -> Tensor:
    """x + ε·U(0, 1), one-sided and unclamped: RoBal in training."""
    return x + threat.radius(x) * _uniform_in_unit_ball(x, threat.norm, generator).abs_()


def zero(x: Tensor, threat: ThreatModel, generator: Noise | None) -> Tensor:
    """x itself."""
    return x.clone()


STARTS: dict[str, Start] = {
    "gauss": gauss,
    "uniform": uniform,
    "uniform_clamp": uniform_clamp,
    "pos_uniform": pos_uniform,
    "zero": zero,
}


def random_start(x: Tensor, threat: ThreatModel, start: str = "gauss", generator: Noise | None = None) -> Tensor:
    """The first iterate x⁰ of an attack on ``x`` [B, ch, H, W], a new tensor of the same shape.

    It may lie outside the box, and for ``"gauss"`` with a tiny ε outside the ball: the published attacks take their
    first gradient there, and the first step projects.

    Args:
        x: clean images.
        threat: norm, ε and box.
        start: a name in :data:`STARTS`.
        generator: source of the noise; torch's global one if None.

    Raises:
        LtatError: an unknown start.
    """
    if start not in STARTS:
        raise LtatError(f"unknown start {start!r}; use one of {', '.join(STARTS)}")
    return STARTS[start](x, threat, generator)


def _noise(draw: Callable[..., Tensor], x: Tensor, generator: Noise | None) -> Tensor:
    if isinstance(generator, SharedGenerator):
        share = generator.share
        return _noise(draw, x.new_empty(share.total, *x.shape[1:]), generator.generator)[share.rows]
    # A CPU generator serves a GPU batch too: then the noise is the same on every device.
    device = x.device if generator is None else generator.device
    return draw(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)


def _uniform_in_unit_ball(x: Tensor, norm: str, generator: Noise | None) -> Tensor:
    if norm == "linf":
        return _noise(torch.rand, x, generator).mul_(2).sub_(1)
    direction = _noise(torch.randn, x, generator).flatten(1)
    dimension = direction.shape[1]
    radius = _noise(torch.rand, x.new_empty(len(x), 1), generator) ** (1 / dimension)
    return (radius * torch.nn.functional.normalize(direction, dim=1)).reshape(x.shape)
