"""Checks of an attack's arguments: images, labels, model, steps."""

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
    """Checks images [B, …], fp32, finite and in the box, and their labels, int64 [B].

    Raises:
        LtatError: one of these does not hold.
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
    """Checks that ``model`` is a module and, for a network of ``ltat.models``, that the images fit its channels.

    The attribute ``in_channels`` of another module may mean anything and is not read.

    Raises:
        LtatError: the model is not a module, or takes another number of channels.
    """
    if not isinstance(model, nn.Module):
        raise LtatError(f"the model is a {type(model).__name__}; wrap it in a torch.nn.Module whose forward calls it")
    if isinstance(model, Classifier) and model.in_channels != channels:
        raise LtatError(
            f"the model takes images of {model.in_channels} channels and these have {channels}; use its own data"
        )


def trial_logits(network: nn.Module, images: Tensor, name: str) -> Tensor:
    """Logits [B, C] of a few images [B, ch, H, W], without gradient: a trial before anything long runs on ``network``.

    Raises:
        LtatError: the network, which the message calls ``name``, fails on them or does not return logits [B, C].
    """
    try:
        with torch.inference_mode():
            logits: Tensor = network(images)
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
def explain_failure(network: nn.Module, images: Tensor) -> Iterator[None]:
    """If the code inside fails, and so does the network on these few images, raise the error of that trial instead."""
    try:
        yield
    except LtatError:
        raise
    except Exception:
        with attack_mode(network, "eval"):
            trial_logits(network, images, "the model")
        raise


def check_logits(logits: object, name: str = "the model") -> None:
    """Raises: LtatError unless ``logits`` is a tensor [B, C]."""
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise LtatError(f"{name} returns {found} and not logits [B, C]; wrap it in a module that returns them")


def as_seed(seed: object) -> int:
    """A seed for torch's generators, as an ``int``.

    Raises:
        LtatError: not a whole number from 0 to :data:`MAX_SEED`.
    """
    return as_whole("seed", seed, 0, MAX_SEED)


def as_steps(name: str, steps: object) -> int:
    """The number of steps of an attack, as an ``int``.

    Raises:
        LtatError: not a whole number from 0 to :data:`ltat.units.MAX_STEPS`.
    """
    return as_whole(name, steps, 0, MAX_STEPS)


def as_step_size(name: str, step_size: object, threat: ThreatModel, values: int | None = None) -> float | Tensor:
    """The step size of an attack on images of ``values`` = ch·H·W numbers, as a ``float`` or a tensor [B].

    Raises:
        LtatError: not a number, negative, not finite, or wider than the box.
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
    """Raises: LtatError unless ``threat`` is a :class:`ThreatModel`."""
    if not isinstance(threat, ThreatModel):
        raise LtatError(f"threat is {shown(threat)}; give a ThreatModel, such as ThreatModel(norm='linf', eps=8 / 255)")
