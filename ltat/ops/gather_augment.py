"""Every batch of a loader in one pass: pick images, shift, mirror, scale to [0, 1]."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ltat import native
from ltat.errors import LtatError
from ltat.ops.checks import require_tensors
from ltat.ops.devices import has_kernels

# Loading registers the operators; it happens here because torch.compile could not trace it later.
_NATIVE_DEVICES = native.op_devices()
_DTYPES = (torch.float32, torch.bfloat16)


def gather_augment(
    images: Tensor,
    positions: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    mirrored: Tensor | None = None,
    pad_mode: str = "zero",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The images at these positions, shifted, mirrored and scaled to [0, 1].

    A random crop of the padded image is a shift: row i of the result is row i + shift of the source, and what lies
    outside the source is black ("zero") or its reflection without the border pixel ("reflect"). The mirror acts on
    the shifted image. Every value is v / 255, correctly rounded; in bfloat16 rounded once more, to 8 bits. Bright
    bfloat16 numbers lie as far apart as an attack's steps are long, so the loaders never ask for them.

    Args:
        images: uint8 [N, H, W, ch], contiguous.
        positions: int64 [B], each in 0..N-1; all images in order if None.
        shift: int64 [B, 2], rows and columns; no shift if None. With "reflect" less than the image's size.
        mirrored: bool [B], which images to turn left to right; none if None.
        pad_mode: "zero" or "reflect".
        dtype: float32 or bfloat16.

    Returns:
        dtype [B, ch, H, W], channels_last.

    Raises:
        LtatError: shapes, dtypes or devices that do not fit, an unknown padding or dtype, and on the CPU a position
            outside the set or a reflecting shift of an image's size or more. On a CUDA device, where a check
            would synchronise, such an image becomes NaN.
    """
    try:
        _check(images, positions, shift, mirrored, pad_mode)
        if dtype not in _DTYPES:
            raise LtatError(f"images of {dtype} cannot be given; choose torch.float32 or torch.bfloat16")
        if images.device.type in _NATIVE_DEVICES and (images.is_cpu or has_kernels(images.device)):
            return _native_gather(images, positions, shift, mirrored, pad_mode, dtype)
        if not torch.compiler.is_compiling():
            _check_values(images, positions, shift, pad_mode)
    except Exception:
        # An argument that is not a tensor fails somewhere above; this names it.
        optional = {"positions": positions, "shift": shift, "mirrored": mirrored}
        present = {name: tensor for name, tensor in optional.items() if tensor is not None}
        require_tensors(images=images, **present)
        raise
    return gather_augment_twin(images, positions, shift=shift, mirrored=mirrored, pad_mode=pad_mode, dtype=dtype)


def gather_augment_twin(
    images: Tensor,
    positions: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    mirrored: Tensor | None = None,
    pad_mode: str = "zero",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The specification of ``gather_augment`` in plain PyTorch; same arguments, same result.

    It raises nothing: shapes, dtypes and devices are taken as right, and an image whose position or shift is out of
    range becomes NaN on every device.
    """
    chosen = images if positions is None else images[positions.clamp(0, len(images) - 1)]
    if shift is not None or mirrored is not None:
        chosen = _moved(chosen, shift, mirrored, pad_mode)
    # A tensor on the device: CUDA turns division by a Python number into a multiplication, which rounds
    # differently from the CPU.
    white = torch.full((len(chosen), 1, 1, 1), 255.0, device=images.device)
    legal = _legal(images, positions, shift, pad_mode)
    return (chosen.float() / white.where(legal[:, None, None, None], math.nan)).to(dtype).permute(0, 3, 1, 2)


def _legal(images: Tensor, positions: Tensor | None, shift: Tensor | None, pad_mode: str) -> Tensor:
    """bool [B], which positions lie in the set and which shifts in the reach of the padding."""
    batch = len(images) if positions is None else len(positions)
    legal = torch.ones(batch, dtype=torch.bool, device=images.device)
    if positions is not None:
        legal &= (positions >= 0) & (positions < len(images))
    if shift is not None and pad_mode == "reflect":
        for axis, size in enumerate(images.shape[1:3]):
            legal &= (shift[:, axis] > -size) & (shift[:, axis] < size)
    return legal


def _moved(chosen: Tensor, shift: Tensor | None, mirrored: Tensor | None, pad_mode: str) -> Tensor:
    batch, height, width = chosen.shape[:3]
    device = chosen.device
    shift = torch.zeros(batch, 2, dtype=torch.int64, device=device) if shift is None else shift
    mirrored = torch.zeros(batch, dtype=torch.bool, device=device) if mirrored is None else mirrored
    ahead = torch.arange(width, device=device)
    across = torch.where(mirrored[:, None], ahead.flip(0), ahead)
    rows = PADDINGS[pad_mode](torch.arange(height, device=device) + _bounded(shift[:, :1], height), height)
    columns = PADDINGS[pad_mode](across + _bounded(shift[:, 1:], width), width)
    sample = torch.arange(batch, device=device)[:, None, None]
    found = chosen[sample, rows.source[:, :, None], columns.source[:, None, :]]
    inside = rows.inside[:, :, None] & columns.inside[:, None, :]
    return found * inside[..., None]


def _bounded(shift: Tensor, size: int) -> Tensor:
    """Without the overflow a wilder shift could cause; further off all is padding."""
    return shift.clamp(-size, size)


class Axis(NamedTuple):
    """Where the pixels of one output row or column come from."""

    source: Tensor  # int64 [B, size], clamped into the image
    inside: Tensor  # bool [B, size], False where the source lies in the zero padding


def _zero(position: Tensor, size: int) -> Axis:
    inside = (position >= 0) & (position < size)
    return Axis(position.clamp(0, size - 1), inside)


def _reflect(position: Tensor, size: int) -> Axis:
    last = size - 1
    source = last - (last - position.abs()).abs()
    return Axis(source.clamp(0, last), torch.ones_like(position, dtype=torch.bool))


PADDINGS: dict[str, Callable[[Tensor, int], Axis]] = {"zero": _zero, "reflect": _reflect}


def _native_gather(
    images: Tensor,
    positions: Tensor | None,
    shift: Tensor | None,
    mirrored: Tensor | None,
    pad_mode: str,
    dtype: torch.dtype,
) -> Tensor:
    choices = pad_mode == "reflect", dtype == torch.bfloat16
    try:
        batch: Tensor = torch.ops.ltat.gather_augment(images, positions, shift, mirrored, *choices)
    except RuntimeError:
        # The operator has checked every value; this names the one that it refused.
        _check_values(images, positions, shift, pad_mode)
        raise
    return batch.permute(0, 3, 1, 2)


def _check(
    images: Tensor, positions: Tensor | None, shift: Tensor | None, mirrored: Tensor | None, pad_mode: str
) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or not images.is_contiguous():
        kind = f"{images.dtype} of shape {tuple(images.shape)}"
        raise LtatError(f"images are {kind}; give contiguous uint8 [N, H, W, ch]")
    if not isinstance(pad_mode, str) or pad_mode not in PADDINGS:
        raise LtatError(f"unknown padding {pad_mode!r}; choose one of {', '.join(PADDINGS)}")
    batch = len(images) if positions is None else positions.numel()
    for name, tensor, shape, dtype in (
        ("positions", positions, (batch,), torch.int64),
        ("shift", shift, (batch, 2), torch.int64),
        ("mirrored", mirrored, (batch,), torch.bool),
    ):
        if tensor is not None and (tensor.shape != shape or tensor.dtype != dtype or tensor.device != images.device):
            raise LtatError(
                f"{name} is {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}; "
                f"give {dtype} {shape} on {images.device}"
            )
    if positions is not None and len(images) == 0 and batch > 0:
        raise LtatError(f"{batch} images are asked of an empty set; give positions of images that are there")


def _check_values(images: Tensor, positions: Tensor | None, shift: Tensor | None, pad_mode: str) -> None:
    if images.device.type != "cpu":
        return
    legal = _legal(images, positions, shift, pad_mode)
    if bool(legal.all()):
        return
    bad = int((~legal).nonzero()[0])
    n, height, width = images.shape[:3]
    if positions is not None and not 0 <= int(positions[bad]) < n:
        raise LtatError(f"position {int(positions[bad])} of image {bad} is outside 0..{n - 1}; give places in the set")
    moved = None if shift is None else tuple(shift[bad].tolist())
    raise LtatError(
        f"shift {moved} of image {bad} reflects beyond the far side of {height}x{width} pixels; "
        f"keep rows within +-{height - 1} and columns within +-{width - 1}, or pad with zeros"
    )


if _NATIVE_DEVICES:

    @torch.library.register_fake("ltat::gather_augment")
    def _gather_augment_fake(images: Tensor, positions: Tensor | None, *rest: object) -> Tensor:
        batch = len(images) if positions is None else len(positions)
        return images.new_empty(batch, *images.shape[1:], dtype=_DTYPES[bool(rest[-1])])
