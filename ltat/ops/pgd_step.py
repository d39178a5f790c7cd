"""One step of projected gradient ascent (Madry et al. 2018): step, project onto the eps-ball, clamp to the box."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ltat import native
from ltat.errors import LtatError
from ltat.ops.checks import FLOATS, flag, number, plain, require_tensors
from ltat.ops.devices import has_kernels
from ltat.ops.memory import overlaps_partly, shares_with_itself

# Loading registers the operators; it happens here because torch.compile could not trace it later.
_NATIVE_DEVICES = native.op_devices()
_MOST = torch.finfo(torch.float32).max


def pgd_step(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    norm: str = "linf",
    box: tuple[float, float] = (0.0, 1.0),
    inplace: bool = False,
) -> Tensor:
    """Move ``x_adv`` along ``grad``, then back into the eps-ball about ``x`` and into the box.

    linf: ``clamp(x_adv + step * sign(grad), max(x - eps, lo), min(x + eps, hi))`` with sign(0) = 0.
    l2: step along ``grad / ||grad||_2`` per sample (a zero gradient does not move), scale the perturbation
    back to length eps where it is longer, clamp to the box.
    A NaN in the gradient shows in the result: its pixel for linf, its whole sample for l2.

    Args:
        x_adv: float32 [B, ...], current adversarial images, any strides.
        grad: float32, bfloat16 or float16, same shape: gradient of the attacked loss, to be increased.
        x: float32, same shape, clean images.
        eps: radius, >= 0, in units of the image; one number, or float32 [B] with one per sample.
        step: step length, any sign but not NaN; one number, or float32 [B].
        norm: "linf" or "l2".
        box: lower and upper bound of every pixel.
        inplace: write the result into ``x_adv``. ``grad`` or ``x`` may be ``x_adv`` itself (they are read first), but
            may not overlap it otherwise, nor may its elements share memory with one another.

    Returns:
        float32, same shape and memory order as ``x_adv``; ``x_adv`` itself when ``inplace``. Carries no gradient.

    Raises:
        LtatError: shapes, dtypes or devices that do not fit, an unknown norm, eps < 0 or NaN, step NaN, memory
            that an in-place step would overwrite before it is read.
            Per-sample values on a CUDA device are not checked, which would synchronise: there a bad eps makes its
            sample NaN.
    """
    _check_norm(norm)
    box = _bounds(box)
    inplace = inplace if type(inplace) is bool else flag("inplace", inplace)
    try:
        eps_each, eps_all = _checked(eps, "eps", x_adv, minimum=0.0)
        step_each, step_all = _checked(step, "step", x_adv, minimum=-math.inf)
        if x_adv.device.type in _NATIVE_DEVICES and (x_adv.is_cpu or has_kernels(x_adv.device)):
            amounts = (eps_each, step_each, eps_all, step_all, norm == "l2", *box)
            return (_step_in_place if inplace else _step)(plain(x_adv), plain(grad), plain(x), *amounts)
    except Exception:
        # The operator checks all tensors before it writes; this names the one that it refused. Called first, as before
        # the twin below, it would take a tenth of the time of a small batch.
        _check_call(x_adv, grad, x, eps, step, inplace)
        raise
    _check_call(x_adv, grad, x, eps, step, inplace)
    x_adv, grad, x = plain(x_adv), plain(grad), plain(x)
    eps, step = eps_all if eps_each is None else eps_each, step_all if step_each is None else step_each
    result = pgd_step_twin(x_adv, grad, x, eps=eps, step=step, norm=norm, box=box)
    return (x_adv if inplace else torch.empty_like(x_adv)).copy_(result)


def pgd_step_twin(
    x_adv: Tensor,
    grad: Tensor,
    x: Tensor,
    *,
    eps: float | Tensor,
    step: float | Tensor,
    norm: str = "linf",
    box: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """The specification of ``pgd_step`` in plain PyTorch, without its checks; same arguments, same result."""
    return _TWINS[norm](x_adv, grad, x, eps=_per_sample(eps, x), step=_per_sample(step, x), box=box)


def _linf_twin(
    x_adv: Tensor, grad: Tensor, x: Tensor, *, eps: float | Tensor, step: float | Tensor, box: tuple[float, float]
) -> Tensor:
    # The gradient becomes float32 first: with a bfloat16 gradient, `step * sign(grad)` would round the step.
    sign = grad.float().sign().where(~grad.isnan(), math.nan)
    eps = _finite(_nan_where_negative(eps))
    low, high = (x - eps).clamp(min=box[0]), (x + eps).clamp(max=box[1])
    return torch.clamp(x_adv + step * sign, low, high)


def _l2_twin(
    x_adv: Tensor, grad: Tensor, x: Tensor, *, eps: float | Tensor, step: float | Tensor, box: tuple[float, float]
) -> Tensor:
    # Norms in float64: the square of an input gradient of 1e-25 vanishes in float32.
    long_grad = grad.double()
    grad_norm = _sample_norm(long_grad)
    scale = torch.where(grad_norm == 0, 0.0, step / grad_norm)
    delta = (x_adv - x) + (long_grad * scale).float()
    delta_norm, eps = _sample_norm(delta.double()), _nan_where_negative(eps)
    shrink = torch.where(delta_norm <= eps, 1.0, eps / delta_norm).float()
    return torch.clamp(x + delta * shrink, *box)


_TWINS: dict[str, Callable[..., Tensor]] = {"linf": _linf_twin, "l2": _l2_twin}


def _sample_norm(values: Tensor) -> Tensor:
    dims = tuple(range(1, values.ndim)) or None
    return values.abs() if dims is None else torch.linalg.vector_norm(values, dim=dims, keepdim=True)


def _per_sample(amount: float | Tensor, x: Tensor) -> float | Tensor:
    return amount.view(-1, *[1] * (x.ndim - 1)) if isinstance(amount, Tensor) else amount


def _nan_where_negative(eps: float | Tensor) -> float | Tensor:
    return eps.where(eps >= 0, math.nan) if isinstance(eps, Tensor) else eps


def _finite(eps: float | Tensor) -> float | Tensor:
    """The largest number stands for an infinite radius: it reaches as far, and x + eps never becomes inf - inf."""
    return eps.clamp(max=_MOST) if isinstance(eps, Tensor) else min(eps, _MOST)


def _step(*arguments: Any) -> Tensor:
    return torch.ops.ltat.pgd_step.default(*arguments)


def _step_in_place(x_adv: Tensor, *arguments: Any) -> Tensor:
    torch.ops.ltat.pgd_step_.default(x_adv, *arguments)
    if not torch.compiler.is_compiling() and not x_adv.is_inference():
        # An operator registered with the dispatcher does not do this, and autograd would not notice the write.
        torch.autograd.graph.increment_version(x_adv)
    return x_adv


def _check_call(
    x_adv: Tensor, grad: Tensor, x: Tensor, eps: float | Tensor, step: float | Tensor, inplace: bool
) -> None:
    require_tensors(**{name: each for name, each in {"eps": eps, "step": step}.items() if isinstance(each, Tensor)})
    _check_tensors(x_adv, grad, x, inplace)
    if inplace and not torch.compiler.is_compiling() and x_adv.device.type != "meta":
        _check_memory(x_adv, grad=grad, x=x, eps=eps, step=step)


def _check_tensors(x_adv: Tensor, grad: Tensor, x: Tensor, inplace: bool) -> None:
    require_tensors(x_adv=x_adv, grad=grad, x=x)
    if x_adv.ndim < 1:
        raise LtatError("x_adv needs a batch dimension, got a single number; pass a tensor [B, ...]")
    for name, tensor, dtypes in (
        ("x_adv", x_adv, FLOATS[:1]),
        ("x", x, FLOATS[:1]),
        ("grad", grad, FLOATS),
    ):
        if tensor.shape != x_adv.shape:
            raise LtatError(f"{name} has shape {tuple(tensor.shape)}, x_adv {tuple(x_adv.shape)}; give them one shape")
        if tensor.device != x_adv.device:
            raise LtatError(f"{name} lies on {tensor.device}, x_adv on {x_adv.device}; move them to one device")
        if tensor.dtype not in dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise LtatError(f"{name} is {tensor.dtype}; convert it to {names}")
    if inplace and shares_with_itself(x_adv):
        raise LtatError(
            "x_adv is an expanded or overlapping view, so its elements share memory; clone() it before an in-place step"
        )


def _check_memory(x_adv: Tensor, **read: float | Tensor) -> None:
    """Refuses an in-place step over what it still has to read."""
    for name, tensor in read.items():
        if isinstance(tensor, Tensor) and overlaps_partly(x_adv, tensor):
            raise LtatError(f"x_adv and {name} overlap in memory; clone() one of them before an in-place step")


def _check_norm(norm: str) -> None:
    if not isinstance(norm, str) or norm not in _TWINS:
        raise LtatError(f"unknown norm {norm!r}; choose one of {', '.join(_TWINS)}")


def _bounds(box: tuple[float, float]) -> tuple[float, float]:
    try:
        low, high = box
    except (TypeError, ValueError):
        raise LtatError(f"the box is {box!r}; give a pair (lower, upper) of numbers") from None
    if type(low) is not float or type(high) is not float:
        low, high = number("the lower bound of the box", low), number("the upper bound of the box", high)
    if not low <= high:
        raise LtatError(f"the box {box} is empty; give (lower, upper) with lower <= upper")
    for bound in (low, high):
        if _MOST < abs(bound) < math.inf:
            raise LtatError(f"the bound {bound} of the box is no float32; give at most {_MOST:.4g}, or inf for none")
    return low, high


def _checked(amount: float | Tensor, name: str, x_adv: Tensor, minimum: float) -> tuple[Tensor | None, float]:
    """As the operator takes it: one per sample, or one for all."""
    if type(amount) is not float:
        if isinstance(amount, Tensor):
            _check_each(amount, name, x_adv, minimum)
            return amount.detach(), 0.0
        amount = number(name, amount, f"{_wanted(minimum)}, or float32 [B]")
    if not amount >= minimum:
        raise LtatError(f"{name} is {amount}; give {_wanted(minimum)}")
    return None, amount


def _check_each(amount: Tensor, name: str, x_adv: Tensor, minimum: float) -> None:
    if amount.shape != x_adv.shape[:1] or amount.dtype != torch.float32 or amount.device != x_adv.device:
        raise LtatError(
            f"{name} is a {amount.dtype} tensor {tuple(amount.shape)} on {amount.device}; "
            f"give {_wanted(minimum)}, or float32 [{x_adv.shape[0]}] on {x_adv.device}"
        )
    if amount.device.type == "cpu" and not torch.compiler.is_compiling() and not bool((amount >= minimum).all()):
        bad = int((~(amount >= minimum)).nonzero()[0])
        raise LtatError(f"{name} of sample {bad} is {float(amount[bad])}; it must be {_wanted(minimum)}")


def _wanted(minimum: float) -> str:
    return "a number >= 0" if minimum == 0 else "a number"


if _NATIVE_DEVICES:

    @torch.library.register_fake("ltat::pgd_step")
    def _pgd_step_fake(x_adv: Tensor, grad: Tensor, x: Tensor, *_: object) -> Tensor:
        _check_tensors(x_adv, grad, x, inplace=False)
        return torch.empty_like(x_adv)

    @torch.library.register_fake("ltat::pgd_step_")
    def _pgd_step_inplace_fake(x_adv: Tensor, grad: Tensor, x: Tensor, *_: object) -> None:
        _check_tensors(x_adv, grad, x, inplace=True)
