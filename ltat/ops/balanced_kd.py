"""Balanced softmax cross-entropy plus distillation, value and gradient in one pass.

Balanced softmax: Ren et al. 2020 (logit adjustment: Menon et al. 2021). Distillation with temperature: Hinton et
al. 2015. Matching logit differences along the perturbation (igdm): Lee, Cho and Kim 2025.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ltat import native
from ltat.errors import LtatError
from ltat.ops.checks import flag, number, require_tensors
from ltat.ops.devices import has_kernels

# Loading registers the operator; it happens here because torch.compile could not trace it later.
_NATIVE_DEVICES = native.op_devices()
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_REDUCTIONS = ("batchmean", "elementmean")


class BalancedKD(NamedTuple):
    """The loss, and its two parts before weighting; all 0-dim float32, only ``loss`` carries a gradient."""

    loss: Tensor
    cls: Tensor
    kd: Tensor


_DIFFERENCES = ("student_minus", "teacher_adv", "teacher_minus")
_FORMS: dict[str, tuple[str | None, ...]] = {
    "none": (None, None, None, None),
    "igdm": (None, *_DIFFERENCES),
    "kl_adv": ("teacher_adv", None, None, None),
    "kl_clean": ("teacher_clean", None, None, None),
    "kl_adv+igdm": ("teacher_adv", *_DIFFERENCES),
}
"""By form, the arguments that are the operator's teacher, student_minus, teacher_plus and teacher_minus.

The operator compares ``student`` with ``teacher``, and ``student - student_minus`` with ``teacher_plus -
teacher_minus``. It subtracts inside: with ready-made differences loss and gradient take about a fifth longer.
"""
KD_FORMS = tuple(_FORMS)


def balanced_kd(
    student_adv: Tensor,
    target: Tensor,
    log_prior: Tensor,
    *,
    form: str = "none",
    student_minus: Tensor | None = None,
    teacher_adv: Tensor | None = None,
    teacher_minus: Tensor | None = None,
    teacher_clean: Tensor | None = None,
    cls_weight: float = 1.0,
    kd_weight: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    on_biased: bool = False,
) -> BalancedKD:
    """``cls_weight * CE(student_adv + log_prior, target) + kd_weight * KD``, computed in float32 log space.

    KD is T^2 KL(softmax(teacher / T) || softmax(student / T)), whose gradient keeps its scale when T changes (Hinton).
    A teacher probability of exactly 0 contributes 0, with a finite gradient. The forms:

    - ``none``: 0
    - ``igdm``: teacher = teacher_adv - teacher_minus, student = student_adv - student_minus
    - ``kl_adv``, ``kl_clean``: teacher = teacher_adv or teacher_clean, student = student_adv
    - ``kl_adv+igdm``: the sum of the two

    Args:
        student_adv: logits [B, C] on the adversarial images; float32, bfloat16 or float16; B, C >= 1.
        target: int64 [B], 0..C-1.
        log_prior: float32 [C], tau * log n of the training classes, or zeros for plain cross-entropy.
        form: one of ``KD_FORMS``.
        student_minus: the student's logits at x - delta, for igdm.
        teacher_adv, teacher_minus, teacher_clean: the teacher's at x + delta, x - delta and x, detached.
        cls_weight, kd_weight: of the cross-entropy and of the distillation term (alpha).
        temperature: T > 0.
        reduction: of the KL: "batchmean" (sum / B) or "elementmean" (sum / (B * C)).
        on_biased: the student of the direct divergences is student_adv + log_prior (cancels in igdm).

    Returns:
        ``BalancedKD``, 0-dim float32; ``loss`` is differentiable once, by ``student_adv`` and ``student_minus``.

    Raises:
        LtatError: an unknown form or reduction, a missing tensor, a shape, dtype or device that does not fit, a teacher
            tensor that requires a gradient, a target out of range or a log_prior of NaN or +inf (on CUDA the loss is
            NaN instead: a check would synchronise), T <= 0, a value that is not a number.
        RuntimeError: a second derivative of the native operator is computed.
    """
    given = _by_name(student_minus, teacher_adv, teacher_minus, teacher_clean)
    _check_form(form, given)
    operands = (*_compared(form, given), *_checked_options(cls_weight, kd_weight, temperature, reduction, on_biased))
    try:
        on = student_adv.device
        if on.type in _NATIVE_DEVICES and (on.type == "cpu" or has_kernels(on)) and not log_prior.requires_grad:
            return _native_loss(student_adv, target, log_prior, *operands)
    except Exception:
        # The operator checks all tensors and targets before it computes; this names the one that it refused.
        _check_all(student_adv, target, log_prior, form, given)
        raise
    _check_all(student_adv, target, log_prior, form, given)
    return _twin_loss(student_adv, target, log_prior, *operands)


def balanced_kd_twin(
    student_adv: Tensor,
    target: Tensor,
    log_prior: Tensor,
    *,
    form: str = "none",
    student_minus: Tensor | None = None,
    teacher_adv: Tensor | None = None,
    teacher_minus: Tensor | None = None,
    teacher_clean: Tensor | None = None,
    cls_weight: float = 1.0,
    kd_weight: float = 1.0,
    temperature: float = 1.0,
    reduction: str = "batchmean",
    on_biased: bool = False,
) -> BalancedKD:
    """The specification of ``balanced_kd`` in plain PyTorch, without its checks; same arguments, same result."""
    compared = _compared(form, _by_name(student_minus, teacher_adv, teacher_minus, teacher_clean))
    operands = (*compared, cls_weight, kd_weight, temperature, reduction == "elementmean", on_biased)
    return _twin_loss(student_adv, target, log_prior, *operands)


def _by_name(
    student_minus: Tensor | None, teacher_adv: Tensor | None, teacher_minus: Tensor | None, teacher_clean: Tensor | None
) -> dict[str, Tensor | None]:
    return {
        "student_minus": student_minus,
        "teacher_adv": teacher_adv,
        "teacher_minus": teacher_minus,
        "teacher_clean": teacher_clean,
    }


def _twin_loss(
    student: Tensor,
    target: Tensor,
    log_prior: Tensor,
    teacher: Tensor | None,
    student_minus: Tensor | None,
    teacher_plus: Tensor | None,
    teacher_minus: Tensor | None,
    cls_weight: float,
    kd_weight: float,
    temperature: float,
    elementmean: bool,
    on_biased: bool,
) -> BalancedKD:
    """The operator in plain PyTorch, with its arguments."""
    logits = student.float()
    biased = logits + log_prior
    cls = F.cross_entropy(biased, target)
    kd = torch.zeros((), device=logits.device)
    if teacher is not None:
        kd = kd + _kl_twin(teacher.float(), biased if on_biased else logits, temperature)
    if student_minus is not None and teacher_plus is not None and teacher_minus is not None:
        difference = teacher_plus.float() - teacher_minus.float()
        kd = kd + _kl_twin(difference, logits - student_minus.float(), temperature)
    if elementmean:
        kd = kd / logits.shape[1]
    return BalancedKD(cls_weight * cls + kd_weight * kd, cls.detach(), kd.detach())


def _kl_twin(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 * batchmean KL(softmax(teacher / T) || softmax(student / T))."""
    log_p = F.log_softmax(teacher / temperature, dim=1)
    log_q = F.log_softmax(student / temperature, dim=1)
    p = log_p.exp()
    return temperature**2 * torch.where(p == 0, 0.0, p * (log_p - log_q)).sum() / len(student)


def _native_loss(student: Tensor, target: Tensor, log_prior: Tensor, *rest: Any) -> BalancedKD:
    student_minus = rest[1]
    wants_grad = student.requires_grad or (student_minus is not None and student_minus.requires_grad)
    # What is compiled must stay one operator, with the gradient registered for it.
    operator = torch.ops.ltat.balanced_kd if torch.compiler.is_compiling() else _Loss.apply
    loss, cls, kd, *_ = operator(student, target, log_prior, *rest, torch.is_grad_enabled() and wants_grad)
    return BalancedKD(loss, cls, kd)


def _compared(
    form: str, given: dict[str, Tensor | None]
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """The operator's teacher, student_minus, teacher_plus and teacher_minus; None where the form has no such term."""
    teacher, student_minus, teacher_plus, teacher_minus = (
        None if name is None else given[name] for name in _FORMS[form]
    )
    return teacher, student_minus, teacher_plus, teacher_minus


def _check_form(form: str, given: dict[str, Tensor | None]) -> None:
    """Tensors that the form does not need may be given and are ignored."""
    if not isinstance(form, str) or form not in _FORMS:
        raise LtatError(f"unknown distillation form {form!r}; choose one of {', '.join(KD_FORMS)}")
    for name in _FORMS[form]:
        if name is None:
            continue
        tensor = given[name]
        if tensor is None:
            raise LtatError(f"form {form!r} needs {name}; pass it, or choose another form")
        if name.startswith("teacher") and isinstance(tensor, Tensor) and tensor.requires_grad:
            raise LtatError(f"{name} requires a gradient, but none flows to the teacher; detach() it")


def _check_all(student: Tensor, target: Tensor, log_prior: Tensor, form: str, given: dict[str, Tensor | None]) -> None:
    others = {name: tensor for name in _FORMS[form] if name is not None and (tensor := given[name]) is not None}
    _check(student, target, log_prior, others)
    _check_values(target, log_prior)


def _check(student: Tensor, target: Tensor, log_prior: Tensor, others: dict[str, Tensor]) -> None:
    require_tensors(student_adv=student, target=target, log_prior=log_prior, **others)
    if student.ndim != 2 or 0 in student.shape:
        raise LtatError(f"student_adv has shape {tuple(student.shape)}; give logits [B, C] with B, C >= 1")
    batch, classes = student.shape
    device = student.device
    _check_tensor("target", target, (batch,), (torch.int64,), device)
    _check_tensor("log_prior", log_prior, (classes,), (torch.float32,), device)
    for name, tensor in {"student_adv": student, **others}.items():
        _check_tensor(name, tensor, (batch, classes), _DTYPES, device)
    if log_prior.requires_grad:
        raise LtatError("log_prior requires a gradient, but none flows to it; detach() it")


def _check_values(target: Tensor, log_prior: Tensor) -> None:
    if target.device.type != "cpu" or torch.compiler.is_compiling():
        return
    classes = len(log_prior)
    low, high = (int(bound) for bound in target.aminmax())
    if low < 0 or high >= classes:
        raise LtatError(f"target {low if low < 0 else high} is outside 0..{classes - 1}; check the labels")
    if not bool((log_prior < math.inf).all()):
        bad = int((~(log_prior < math.inf)).nonzero()[0])
        raise LtatError(
            f"log_prior of class {bad} is {float(log_prior[bad])}; give tau * log n of the training classes"
        )


def _check_tensor(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if tensor.shape != shape:
        raise LtatError(f"{name} has shape {tuple(tensor.shape)}; give {shape}")
    if tensor.dtype not in dtypes:
        names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
        raise LtatError(f"{name} is {tensor.dtype}; convert it to {names}")
    if tensor.device != device:
        raise LtatError(f"{name} lies on {tensor.device}, student_adv on {device}; move them to one device")


def _temperature(value: float) -> float:
    temperature = number("temperature", value, "a number > 0")
    if not 0 < temperature < math.inf:
        raise LtatError(f"temperature is {temperature}; it must be a number > 0")
    return temperature


def _checked_options(
    cls_weight: float, kd_weight: float, temperature: float, reduction: str, on_biased: bool
) -> tuple[float, float, float, bool, bool]:
    """The operator's options: both weights, T, whether elementmean, on_biased."""
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise LtatError(f"unknown reduction {reduction!r}; choose one of {', '.join(_REDUCTIONS)}")
    weights = number("cls_weight", cls_weight), number("kd_weight", kd_weight)
    return *weights, _temperature(temperature), reduction == "elementmean", flag("on_biased", on_biased)


def _scaled(student: Tensor, student_minus: Tensor | None, grads: Tensor, grad_loss: Tensor) -> tuple[Tensor, ...]:
    """The saved gradients times the incoming one: one pass over both, which also rounds them to the logits' type."""
    alike = student_minus is None or student_minus.dtype == student.dtype
    product = torch.empty_like(grads, dtype=student.dtype if alike else torch.float32)
    return _halves(torch.mul(grads, grad_loss, out=product), student, student_minus)


def _halves(grads: Iterable[Tensor], student: Tensor, student_minus: Tensor | None) -> tuple[Tensor, ...]:
    """What goes to ``student`` and, if there is one, to ``student_minus``, each in its type."""
    logits = (student,) if student_minus is None else (student, student_minus)
    return tuple(grad.to(each.dtype) for grad, each in zip(grads, logits, strict=True))


class _ScaledGradient(torch.autograd.Function):
    """The gradients computed in the forward pass, times the incoming one; differentiating them once more raises.

    The logits are an input so that autograd sees the dependence: without it a second derivative would be
    silently zero instead of an error.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, student_minus: Tensor | None, grads: Tensor, grad_loss: Tensor
    ) -> tuple[Tensor, ...]:
        return _scaled(student, student_minus, grads, grad_loss)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> tuple[None, None, None, None]:
        raise RuntimeError("balanced_kd has no second derivative; use balanced_kd_twin where one is needed")


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, cls, kd, grads = output
    student, student_minus = inputs[0], inputs[4]
    ctx.set_materialize_grads(False)  # zeros of the size of the logits, otherwise, for outputs that carry none
    ctx.mark_non_differentiable(cls, kd, grads)
    ctx.save_for_backward(student, student_minus, grads)


def _backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return _gradients(ctx, grad_loss, _ScaledGradient.apply if torch.is_grad_enabled() else _scaled)


def _gradients(
    ctx: Any, grad_loss: Tensor | None, scaled: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor | None, ...]:
    if grad_loss is None:
        return (None,) * len(ctx.needs_input_grad)
    gradients = scaled(*ctx.saved_tensors, grad_loss)
    to_minus = gradients[1] if len(gradients) > 1 else None
    return (gradients[0], None, None, None, to_minus, *[None] * 8)


class _Loss(torch.autograd.Function):
    """The operator and its gradient in eager mode: what ``register_autograd`` makes of them, at a fraction of its
    overhead, which exceeds the arithmetic of ten classes.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.ltat.balanced_kd.default(*arguments)
        _setup_context(ctx, arguments, output)
        # Held here, so that autograd copies them where it accumulates and does not take them over.
        ctx.unscaled = tuple(output[3])
        return output

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if _is_one(grad_loss) and not torch.is_grad_enabled():
            return _gradients(ctx, grad_loss, lambda *saved: _halves(ctx.unscaled, *saved[:2]))
        return _backward(ctx, grad_loss)


def _is_one(grad_loss: Tensor | None) -> bool:
    """Whether there is nothing to scale; never on a GPU, where reading the value is a synchronisation."""
    return type(grad_loss) is Tensor and grad_loss.is_cpu and grad_loss.item() == 1.0


if _NATIVE_DEVICES:
    torch.library.register_autograd("ltat::balanced_kd", _backward, setup_context=_setup_context)

    @torch.library.register_fake("ltat::balanced_kd")
    def _balanced_kd_fake(
        student: Tensor, target: Tensor, log_prior: Tensor, teacher: Tensor | None, *rest: Any
    ) -> tuple[Tensor, ...]:
        names = ("the teacher", *_DIFFERENCES)
        others = {name: t for name, t in zip(names, (teacher, *rest[:3]), strict=True) if t is not None}
        _check(student, target, log_prior, others)
        differences, want_grad = rest[0] is not None, rest[-1]

        def floats(*shape: int) -> Tensor:
            return student.new_empty(shape, dtype=torch.float32)

        grads = floats(2 if differences else 1, *student.shape) if want_grad else floats(0)
        return floats(), floats(), floats(), grads
