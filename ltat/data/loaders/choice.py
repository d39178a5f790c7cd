"""Which loader suits a set: on the device where it fits, streamed where its file stands, else through torch."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from ltat import memory
from ltat.data.beton import BetonImages
from ltat.data.loaders.base import Loader
from ltat.data.loaders.dataloader import TorchLoader
from ltat.data.loaders.ffcv import FfcvLoader
from ltat.data.loaders.resident import ResidentLoader
from ltat.data.plans import IndexPlan
from ltat.data.split import Split
from ltat.errors import LtatError
from ltat.torchrun import processes_here


def _resident(split: Split, plan: IndexPlan, *, workers: int | None = None, **settings: Any) -> Loader:
    return ResidentLoader(split, plan, **settings)  # nothing is read, so there is nothing for workers to do


LOADERS: dict[str, Callable[..., Loader]] = {"resident": _resident, "ffcv": FfcvLoader, "torch": TorchLoader}
DEFAULT_SHARE = 0.25


def make_loader(
    split: Split,
    plan: IndexPlan,
    *,
    kind: str = "auto",
    device: torch.device | str = "cpu",
    share: float = DEFAULT_SHARE,
    workers: int | None = None,
    **settings: Any,
) -> Loader:
    """The loader of that kind, or with ``auto`` the one that suits; its ``why`` gives the choice and the reason.

    Args:
        split: the images and labels.
        plan: which image stands at which place of an epoch.
        kind: "auto" or a key of ``LOADERS``.
        device: where the batches lie.
        share: of the device's free memory that resident images may take, above 0 and at most 1.
        workers: of the loaders that read; one less than the cores if None.
        settings: as every loader's (``ltat.data.Loader``).

    Raises:
        LtatError: an unknown kind, or what the loader refuses.
    """
    device = torch.device(device)
    name, reason = choose_loader(split, device, share) if kind == "auto" else (kind, "as asked")
    if name not in LOADERS:
        raise LtatError(f"unknown loader {name!r}; choose one of auto, {', '.join(LOADERS)}")
    loader = LOADERS[name](split, plan, device=device, workers=workers, **settings)
    loader.why = f"{name}: {reason}"
    return loader


def choose_loader(split: Split, device: torch.device, share: float = DEFAULT_SHARE) -> tuple[str, str]:
    """The name of the loader that suits, and why."""
    if device.type == "cpu" and isinstance(split.images, np.ndarray):
        return "resident", "the images are in memory"
    free = free_memory(device)
    size = f"{split.images.nbytes / 1e9:.2g} GB of images"
    room = f"{share:.0%} of the {free / 1e9:.3g} GB free on {device}"
    if split.images.nbytes <= share * free:
        return "resident", f"{size} fit in {room}"
    if not isinstance(split.images, BetonImages):
        return "torch", f"{size} exceed {room}, and they lie in no .beton file"
    if find_spec("ffcv") is None:
        return "torch", f"{size} exceed {room}, and FFCV is missing: python -m ltat.install_ffcv"
    return "ffcv", f"{size} exceed {room}"


def free_memory(device: torch.device) -> int:
    """Bytes that may still be taken on a device, within the limit of a container; ranks share their machine's."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return memory.free_memory() // processes_here()
