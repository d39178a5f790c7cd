"""Checks of numbers that are often given in another unit; none of them needs torch."""

import math

from ltat.errors import LtatError

MAX_IMAGE_SIZE = 4096
MAX_STEPS = 10_000
MAX_EPOCHS = 100_000


def check_length(
    name: str, value: float, norm: str = "linf", box: tuple[float, float] = (0.0, 1.0), values: int | None = None
) -> None:
    """Refuses a radius or step that is wider than the box, as 8 is in ℓ∞ where 8/255 is meant.

    In ℓ2 the box is as wide as its diagonal, which an image of ``values`` = ch·H·W numbers tells; without, it passes.

    Raises:
        LtatError: naming the value and the likely intention.
    """
    width = box[1] - box[0]
    if norm == "linf" and value > width:
        meant = f"give {value:g}/255?" if width <= 1 and value <= 255 else f"give at most {width:g}"
        raise LtatError(f"{name}={value:g} is wider than the box [{box[0]:g}, {box[1]:g}] of the pixels; {meant}")
    if norm == "l2" and values is not None and value > width * math.sqrt(values):
        raise LtatError(
            f"{name}={value:g} is wider in l2 than the diagonal {width * math.sqrt(values):.4g} of the box "
            f"[{box[0]:g}, {box[1]:g}] for images of {values} values; give for example 128/255"
        )


def check_ratio(name: str, ratio: float) -> None:
    """Refuses an imbalance ratio below 1, as the share 0.02 is where 50 is meant.

    Raises:
        LtatError: naming the ratio and the likely intention.
    """
    if math.isfinite(ratio) and ratio >= 1:
        return
    meant = f"give 1/{ratio:g} = {1 / ratio:g}?" if 0 < ratio < 1 else "1 means balanced"
    raise LtatError(
        f"{name} {ratio} is not a finite number of at least 1, the largest class over the smallest; {meant}"
    )


def check_image_size(name: str, pixels: int) -> None:
    """Refuses to scale images to a size that no network here is trained at.

    Raises:
        LtatError: naming the size.
    """
    if not 1 <= pixels <= MAX_IMAGE_SIZE:
        raise LtatError(f"{name}={pixels} is not from 1 to {MAX_IMAGE_SIZE} pixels; give for example 224")
