"""Projected gradient descent, one function for every variant of the literature (Madry et al. 2018).

x⁰ = start(x);   xᵗ⁺¹ = Π(xᵗ + a·sign ∇ₓ J(xᵗ)),   t = 0 … K−1
"""

import warnings

import torch
from torch import Tensor, nn

from ltat.arguments import as_whole
from ltat.attacks.ascent import Ascent
from ltat.attacks.captured import captured_climb, why_not_captured
from ltat.attacks.checks import as_step_size, as_steps, check_batch, check_channels, check_threat, explained
from ltat.attacks.modes import MODES, attack_mode
from ltat.attacks.objectives import Objective, cross_entropy
from ltat.attacks.starts import STARTS
from ltat.attacks.threat import LINF_8, ThreatModel
from ltat.engine.network import StepNetwork
from ltat.engine.precision import autocast, dtype_of
from ltat.errors import LtatError

KEEPS = ("last", "best")
# Keeps the input gradients of fp16 above its smallest number; the step's direction does not depend on it.
FP16_LOSS_SCALE = 1024.0


def pgd(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel = LINF_8,
    steps: int = 10,
    step_size: float | Tensor | None = None,
    start: str = "gauss",
    objective: Objective = cross_entropy,
    mode: str = "eval",
    restarts: int = 1,
    keep: str = "last",
    generator: torch.Generator | None = None,
    precision: str = "fp32",
    fold: bool | None = None,
    validate: bool = True,
) -> Tensor:
    """Adversarial images for ``model`` around ``x``.

    The model comes back as it was, also after an exception: the mode of every submodule, ``requires_grad``,
    ``.grad``, and all buffers (but for ``mode="train"``, which by definition moves running statistics). No
    weight gradient is computed. It works under ``torch.no_grad()`` and ``torch.inference_mode()``.

    Args:
        model: images [B, ch, H, W] → logits [B, C]. A :class:`ltat.engine.network.StepNetwork` of this ``precision``
            keeps its working copy, and its CUDA graphs if it has some, from attack to attack.
        x: clean images [B, ch, H, W], fp32 in the threat model's box.
        y: labels [B], int64 in [0, C).
        threat: norm, ε (one number or one per image) and box.
        steps: K ≥ 0; with 0 the start itself, projected.
        step_size: a, one number or a tensor [B], in pixel units; ε/4 if None.
        start: a name in ``STARTS``.
        objective: the loss per image to ascend; see ``Objective``.
        mode: a name in ``MODES``.
        restarts: independent starts; per image the one with the largest objective is returned.
        keep: ``"last"`` iterate of each restart, or the ``"best"`` of all iterates by the objective.
            ``"best"`` and ``restarts > 1`` cost one forward more per restart.
        generator: source of the start noise (its own device); torch's global one if None.
        precision: of the network body, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        fold: in mode ``"eval"``, attack a working copy with batch norm folded into the convolutions (see
            :mod:`ltat.engine.working_copy`); a network that cannot be copied is attacked as it stands, and a warning
            says why (of a wrapper, ``attacked_as`` does). If None, only in half precision: ``"fp32"`` is the exact
            reference.
        validate: check the arguments; the checks read values back from the device, so the trainer skips them.

    Returns:
        Images [B, ch, H, W] of x's dtype, detached, in the ball up to fp32 rounding and in the box.

    Raises:
        LtatError: a wrong argument, told with its value, or a model that fails on one image.
    """
    if validate:
        check_threat(threat)
        check_batch(x, y, threat)
        check_channels(model, x.shape[1] if x.dim() > 1 else 1)
        _check_choices(start, mode, keep, precision)
        steps, restarts = as_steps("steps", steps), as_whole("restarts", restarts, 1)
        step_size = None if step_size is None else as_step_size("step_size", step_size, threat)
    step_size = threat.eps / 4 if step_size is None else step_size
    # Another's autocast would round the gradients too: backward runs under the one that stands when it is called.
    exact = autocast(x.device.type, "fp32")
    with explained(model, x[:1]), attack_mode(model, mode), torch.inference_mode(False), torch.enable_grad(), exact:
        x, y = _recordable(x), _recordable(y)
        largest_label = int(y.max()) if validate else -1  # a CUDA kernel must never meet a label too large
        network = _wrapped(model, precision)
        folded = mode == "eval" and (precision != "fp32" if fold is None else fold)
        scale = FP16_LOSS_SCALE if precision == "fp16" else 1.0
        attacked = network.for_attack() if folded else network
        if folded and attacked is network and network is not model:  # whoever keeps the wrapper can ask it
            warnings.warn(f"the attack runs on {network.attacked_as()}", stacklevel=2)
        ascent = Ascent(attacked, y, objective, largest_label, scale)
        if why_not_captured(network, objective, mode=mode, steps=steps, restarts=restarts, keep=keep) is None:
            x_adv = threat.random_start(x, start, generator)
            return captured_climb(network, ascent, x_adv, x, threat, steps, step_size)
        best = _Best(x)
        for _ in range(restarts):
            x_adv = threat.random_start(x, start, generator)
            x_adv = ascent.climb(x_adv, x, threat, steps, step_size, best.update if keep == "best" else None)
            if steps == 0:
                x_adv = threat.project(x_adv, x)
            if keep == "last" and restarts == 1:
                return x_adv
            with torch.no_grad():
                best.update(x_adv, ascent.loss(x_adv))
    return best.x_adv


def _wrapped(model: nn.Module, precision: str) -> StepNetwork:
    known = isinstance(model, StepNetwork) and model.precision == precision
    return model if isinstance(model, StepNetwork) and known else StepNetwork(model, precision)


class _Best:
    """Per image the candidate with the largest loss so far; a NaN loss never wins over a number."""

    def __init__(self, x: Tensor) -> None:
        self.x_adv = x
        self.loss: Tensor | None = None

    def update(self, x_adv: Tensor, loss: Tensor) -> None:
        if self.loss is None:
            self.x_adv, self.loss = x_adv.clone(), loss
            return
        better = (loss > self.loss) | self.loss.isnan()
        self.loss = torch.where(better, loss, self.loss)
        self.x_adv = torch.where(better.reshape(-1, *([1] * (x_adv.dim() - 1))), x_adv, self.x_adv)


def _recordable(tensor: Tensor) -> Tensor:
    # Autograd cannot save a tensor that was made under inference mode; its copy is an ordinary one.
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _check_choices(start: str, mode: str, keep: str, precision: str) -> None:
    for what, name, known in (("start", start, STARTS), ("mode", mode, MODES), ("keep", keep, KEEPS)):
        if name not in known:
            raise LtatError(f"unknown {what} {name!r}: use one of {', '.join(known)}")
    dtype_of(precision)
