"""Checks of what an attack is given."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ltat.arguments import as_number, as_whole, shown
from ltat.attacks.modes import attack_mode
from ltat.attacks.threat import ThreatModel
from ltat.errors import LtatError
from ltat.models import Classifier
from ltat.ops.checks import require_tensors
from ltat.units import MAX_STEPS, check_length

MAX_SEED = 2**63 - 1


def check_batch(x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    """Refuses images [B, …] that are not finite or not in the box, and labels that do not fit them.

    Raises:
        LtatError: naming the offending value.
    """
    require_tensors(x=x, y=y)
    if x.dim() == 0 or len(x) == 0 or y.shape != x.shape[:1]:
        raise LtatError(
            f"images of shape {tuple(x.shape)} but labels of shape {tuple(y.shape)}; give one label per image"
        )
    if y.dtype != torch.int64 or int(y.min()) < 0:
        raise LtatError(f"labels of {y.dtype} from {y.min().item()}; they must be int64 in [0, classes)")
    if x.dtype != torch.float32:
        raise LtatError(f"the images are {x.dtype}; give float32, the dtype of image and perturbation throughout")
    if not bool(torch.isfinite(x).all()):
        raise LtatError(f"{int((~torch.isfinite(x)).sum())} pixels are NaN or infinite; give finite images")
    low, high = threat.box
    if float(x.min()) < low or float(x.max()) > high:
        raise LtatError(
            f"pixels range over [{x.min().item():.4g}, {x.max().item():.4g}], outside the box {threat.box}; "
            "scale the images to it"
        )
    threat.validate(len(x))
    check_reach(threat, x[0].numel())


def check_reach(threat: ThreatModel, values: int) -> None:
    """Refuses a radius wider than the box of images with ``values`` = ch·H·W numbers.

    Raises:
        LtatError: naming the radius and the width.
    """
    radii = torch.as_tensor(threat.eps)
    if radii.numel():
        check_length("eps", float(radii.max()), threat.norm, threat.box, values)


def check_channels(model: object, channels: int) -> None:
    """Refuses what is no module, and images of other channels than one of our networks takes.

    An ``in_channels`` of anybody else's module may mean anything and is not looked at.

    Raises:
        LtatError: naming both numbers, or what the model is.
    """
    if not isinstance(model, nn.Module):
        raise LtatError(f"the model is a {type(model).__name__}; wrap it in a torch.nn.Module whose forward calls it")
    if isinstance(model, Classifier) and model.in_channels != channels:
        raise LtatError(
            f"the model takes images of {model.in_channels} channels and these have {channels}; use its own data"
        )


def tried(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """What ``network`` answers to a few images [B, ch, H, W] before anything long runs on it: logits, no gradient.

    Raises:
        LtatError: it fails on them, or answers something else than one row of logits per image; ``name`` is said.
    """
    try:
        with torch.inference_mode():
            logits = network(images)
    except LtatError:
        raise
    except Exception as error:  # whatever a foreign network raises, such as for another dtype or size
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise LtatError(
            f"{name} fails on images {tuple(images.shape)} of {images.dtype} ({reason}); hand in one that takes them"
        ) from error
    check_logits(logits, name)
    return logits


@contextmanager
def explained(network: nn.Module, images: Tensor) -> Iterator[None]:
    """Where what runs inside fails, and the network fails on these few images alone, too: that is said, see `tried`."""
    try:
        yield
    except LtatError:
        raise
    except Exception:
        with attack_mode(network, "eval"):
            tried(network, images, "the model")
        raise


def check_logits(logits: object, name: str = "the model") -> None:
    """Raises: LtatError where an answer is no tensor [B, C]."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise LtatError(f"{name} answers {found} and not logits [B, C]; wrap it in a module that returns them")


def as_seed(seed: object) -> int:
    """A seed that torch's generators can take, as an ``int``.

    Raises:
        LtatError: naming the seed.
    """
    return as_whole("seed", seed, 0, MAX_SEED)


def as_steps(name: str, steps: object) -> int:
    """The steps of an attack, as an ``int``.

    Raises:
        LtatError: not a whole number from 0 to :data:`ltat.units.MAX_STEPS`.
    """
    return as_whole(name, steps, 0, MAX_STEPS)


def as_step_size(name: str, step_size: object, threat: ThreatModel, values: int | None = None) -> float | Tensor:
    """The step of an attack on images of ``values`` = ch·H·W numbers as a ``float``, or the tensor [B] that it is.

    Raises:
        LtatError: no number, negative, not finite, or wider than the box.
    """
    if not (isinstance(step_size, Tensor) and step_size.dim()):
        step_size = as_number(name, step_size, "give a number of at least 0, or float32 [B]")
    sizes = torch.as_tensor(step_size)
    if not bool((torch.isfinite(sizes) & (sizes >= 0)).all()):
        raise LtatError(f"{name} is {sizes.min().item()}; give a finite one, 0 or more")
    if sizes.numel():
        check_length(name, float(sizes.max()), threat.norm, threat.box, values)
    return step_size


def check_threat(threat: object) -> None:
    """Refuses anything but a threat model.

    Raises:
        LtatError: naming what was given.
    """
    if not isinstance(threat, ThreatModel):
        raise LtatError(f"threat is {shown(threat)}; give a ThreatModel, such as ThreatModel(norm='linf', eps=8 / 255)")
