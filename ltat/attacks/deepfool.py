"""DeepFool: a short way out of the class, over linear models of the network (Moosavi-Dezfooli et al., CVPR 2016).

At the current image the network is taken for linear: class k ≠ y then begins at the distance

    d_k = |f_k − f_y| / ‖∇f_k − ∇f_y‖_*

where * is the dual norm: ℓ2 of ℓ2, and ℓ1 of ℓ∞. The step goes to the nearest one, d_k long, along w = ∇f_k − ∇f_y in
ℓ2 and along sign w in ℓ∞. Steps add up, and their sum is lengthened by the overshoot before each look at the network.
"""

import torch
from torch import Tensor, nn

from ltat.attacks.modes import attack_mode

STEPS = 50
OVERSHOOT = 0.02
CANDIDATES = 10
"""Classes that are tried, the most likely ones; the authors' defaults, all three."""


def deepfool(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: str = "l2",
    box: tuple[float, float] = (0.0, 1.0),
    steps: int = STEPS,
    overshoot: float = OVERSHOOT,
) -> Tensor:
    """Images near ``x`` that the model classifies otherwise, as far as they were found; no radius limits them.

    Args:
        model: images [B, ch, H, W] → logits [B, C]; it is in evaluation mode meanwhile.
        x: images in the box, [B, ch, H, W]; those that are not classified as ``y`` come back as they are.
        y: labels [B], int64 in [0, C).
        norm: ``"l2"`` or ``"linf"``, of the distance that is kept small.
        box: smallest and largest legal pixel value.
        steps: at most.
        overshoot: share by which the sum of the steps is lengthened.

    Returns:
        The images, [B, ch, H, W], in the box.
    """
    with attack_mode(model, "eval"), torch.inference_mode(False), torch.enable_grad():
        x, y = x.clone(), y.clone()  # a tensor of inference mode cannot be recorded
        x_adv, moved = x.clone(), torch.zeros_like(x)
        rivals = _likeliest(model(x).detach(), y)
        for step in range(steps + 1):
            leaf = x_adv.detach().clone().requires_grad_(True)
            logits = model(leaf)
            left = (logits.argmax(1) == y).nonzero().squeeze(1)
            if step == steps or not len(left):
                break
            moved[left] += _nearest_boundary(logits, leaf, y, rivals, norm)[left]
            x_adv[left] = (x + (1 + overshoot) * moved)[left].clamp(*box)
    return x_adv.detach()


def _likeliest(logits: Tensor, y: Tensor) -> Tensor:
    """The most likely classes other than the label, [B, K]."""
    others = logits.scatter(1, y[:, None], -torch.inf)
    return others.topk(min(CANDIDATES, logits.shape[1]) - 1, dim=1).indices


def _nearest_boundary(logits: Tensor, leaf: Tensor, y: Tensor, rivals: Tensor, norm: str) -> Tensor:
    """The step to the nearest boundary of the linear model, [B, ch, H, W]; zero where no gradient leads there."""
    own = logits.gather(1, y[:, None])
    gaps = logits.gather(1, rivals) - own
    best = torch.full_like(gaps[:, 0], torch.inf)
    nearest = torch.zeros_like(leaf)
    for rank in range(rivals.shape[1]):
        (w,) = torch.autograd.grad(gaps[:, rank].sum(), leaf, retain_graph=True)
        length = w.flatten(1).norm(p=2 if norm == "l2" else 1, dim=1)
        distance = torch.where(length > 0, gaps[:, rank].detach().abs() / length, torch.inf)
        nearer = distance < best
        direction = w / _over(length, w) if norm == "l2" else w.sign()
        nearest = torch.where(_over(nearer, w), _over(distance, w) * direction, nearest)
        best = torch.where(nearer, distance, best)
    return nearest


def _over(values: Tensor, images: Tensor) -> Tensor:
    """One value per image, shaped to broadcast against the images."""
    return values.reshape(-1, *[1] * (images.dim() - 1))
