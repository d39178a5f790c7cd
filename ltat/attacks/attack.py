"""PGD on a model: argument checks, mode, precision, working copy and CUDA graph around the algorithm of ``pgd.py``."""

import warnings
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from ltat.attacks.captured import captured_pgd, why_not_captured
from ltat.attacks.checks import as_step_size, as_steps, check_batch, check_channels, check_threat, explain_failure
from ltat.attacks.loss import ModelLoss
from ltat.attacks.modes import MODES, attack_mode
from ltat.attacks.objectives import Objective, cross_entropy
from ltat.attacks.pgd import projected_gradient_descent
from ltat.attacks.starts import STARTS
from ltat.attacks.threat import LINF_8, ThreatModel
from ltat.engine.network import StepNetwork
from ltat.engine.precision import autocast, dtype_of
from ltat.errors import LtatError
from ltat.seeding import Noise

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
    generator: Noise | None = None,
    precision: str = "fp32",
    fold: bool | None = None,
    validate: bool = True,
) -> Tensor:
    """Adversarial images for ``model`` around ``x``, detached, [B, ch, H, W] in x's dtype (Madry et al. 2018).

    Restores the model, also after an exception: modes, ``requires_grad``, ``.grad`` and all buffers, except the
    running statistics that ``mode="train"`` moves. Works under ``torch.no_grad()`` and ``torch.inference_mode()``.

    Args:
        model: images [B, ch, H, W] → logits [B, C]. A :class:`ltat.engine.network.StepNetwork` of this ``precision``
            keeps its working copy and its CUDA graphs from attack to attack.
        x: clean images, fp32 in the threat model's box.
        y: labels [B], int64 in [0, C).
        threat: norm, ε (one number or one per image) and box; the result lies inside, up to fp32 rounding.
        steps: K ≥ 0; with 0 the start itself, projected.
        step_size: a, one number or a tensor [B], in pixel units; ε/4 if None.
        start: a name in ``STARTS``.
        objective: the loss per image to ascend; see ``Objective``.
        mode: a name in ``MODES``.
        generator: source of the start noise, on any device; torch's global one if None.
        precision: of the network body, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        fold: in mode ``"eval"``, attack the working copy (:mod:`ltat.engine.working_copy`), or warn why there is
            none; if None, in half precision only, so that ``"fp32"`` is the exact reference.
        validate: check the arguments, which reads values back from the device; the trainer skips it.

    Raises:
        LtatError: a wrong argument, named with its value, or a model that fails on one image.
    """
    if validate:
        _check_arguments(model, x, y, threat, start=start, mode=mode, precision=precision)
        steps = as_steps("steps", steps)
        step_size = None if step_size is None else as_step_size("step_size", step_size, threat, x[0].numel())
    step_size = threat.eps / 4 if step_size is None else step_size
    fold = mode == "eval" and (precision != "fp32" if fold is None else fold)
    # A caller's autocast would round the gradients too: backward runs under the one in force when it is called.
    exact, recording = autocast(x.device.type, "fp32"), torch.enable_grad()
    with explain_failure(model, x[:1]), attack_mode(model, mode), torch.inference_mode(False), recording, exact:
        x, y = _recordable(x), _recordable(y)
        network = _wrapped(model, precision)
        attacked = _folded(network, model, x) if fold else network
        largest_label = int(y.max()) if validate else -1  # a CUDA kernel must never meet a label too large
        loss = ModelLoss(attacked, y, objective, largest_label, FP16_LOSS_SCALE if precision == "fp16" else 1.0)
        captured = why_not_captured(network, objective, mode=mode, steps=steps) is None
        run = partial(captured_pgd, network) if captured else projected_gradient_descent
        return run(loss, x, threat, steps=steps, step_size=step_size, start=start, generator=generator)


def _wrapped(model: nn.Module, precision: str) -> StepNetwork:
    return model if isinstance(model, StepNetwork) and model.precision == precision else StepNetwork(model, precision)


def _folded(network: StepNetwork, model: nn.Module, x: Tensor) -> Callable[[Tensor], Tensor]:
    """The working copy, or the network itself; a warning says why unless the caller holds the wrapper and can ask."""
    attacked = network.folded(x)
    if attacked is network and network is not model:
        warnings.warn(f"the attack runs on {network.describe_folded(x)}", stacklevel=3)
    return attacked


def _recordable(tensor: Tensor) -> Tensor:
    # Autograd cannot save a tensor that was made under inference mode; its copy is an ordinary one.
    return tensor.clone() if tensor.is_inference() else tensor.detach()


def _check_arguments(
    model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, start: str, mode: str, precision: str
) -> None:
    check_threat(threat)
    check_batch(x, y, threat)
    check_channels(model, x.shape[1] if x.dim() > 1 else 1)
    for what, name, known in (("start", start, STARTS), ("mode", mode, MODES)):
        if name not in known:
            raise LtatError(f"unknown {what} {name!r}; use one of {', '.join(known)}")
    dtype_of(precision)
