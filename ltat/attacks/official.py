"""The only file that imports pyautoattack, the authors' implementation of AutoAttack."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pyautoattack
import torch
from pyautoattack import checks
from torch import Tensor, nn

from ltat.attacks.threat import ThreatModel

VERSION = f"pyautoattack {pyautoattack.__version__}"
STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
RANDOMIZED = (
    "the model answers the same image differently (a randomized defense): one run is not a worst case, and the "
    "version of AutoAttack for such models is not in ltat; evaluate a deterministic form of the model"
)
NORM_NAMES = {"linf": "Linf", "l2": "L2"}
MAX_TARGETS = 9
TARGETED_DLR_CLASSES = 4


def num_targets(num_classes: int) -> int:
    """Target classes of the targeted attacks: the official 9, or all there are."""
    return min(MAX_TARGETS, num_classes - 1)


def possible_stages(num_classes: int, norm: str, size: tuple[int, ...]) -> tuple[str, ...]:
    """The stages of ``standard`` that can run on this many classes and on images of ``size`` (height, width)."""
    possible = {"apgd-t": num_classes >= TARGETED_DLR_CLASSES, "square": norm != "l2" or l2_tiles(*size)}
    return tuple(stage for stage in STAGES if possible.get(stage, True))


def left_out(num_classes: int, norm: str, size: tuple[int, ...]) -> list[str]:
    """The stages of ``standard`` that are not among the :func:`possible_stages`, each in words with its reason."""
    reasons = {
        "apgd-t": f"its loss needs {TARGETED_DLR_CLASSES} classes, the model has {num_classes}",
        "square": f"in l2 the package cannot tile images of {'x'.join(map(str, size))} pixels",
    }
    possible = possible_stages(num_classes, norm, size)
    return [f"{stage} is left out: {why}" for stage, why in reasons.items() if stage not in possible]


def l2_tiles(height: int, width: int) -> bool:
    """Whether Square's first perturbation in l2 fits the image.

    It lays squares of a fifth of the height from an offset on, as many as the image would hold without it, so that the
    last one may reach over the border, where the package fails.
    """
    side = height // 5
    offset = (height - 5 * side) // 2
    return side == 1 or (side > 1 and all(offset + pixels // side * side <= pixels for pixels in (height, width)))


def build(
    model: nn.Module, threat: ThreatModel, num_classes: int, seed: int, device: torch.device
) -> pyautoattack.AutoAttack:
    """The package's ``standard`` ensemble with its targets fitted to the number of classes."""
    package = pyautoattack.AutoAttack(
        model, norm=NORM_NAMES[threat.norm], eps=threat.eps, seed=seed, version="standard", device=device
    )
    package.apgd_targeted.n_target_classes = num_targets(num_classes)
    package.fab.n_target_classes = num_targets(num_classes)
    return package


def run_stage(package: pyautoattack.AutoAttack, stage: str, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[str]]:
    """Runs one stage on one batch of images that are classified correctly.

    Returns:
        ``x_adv`` [B, …], ``fooled`` bool [B], and the package's warnings. Restores the global random state and
        the interpreter's trace function.
    """
    package.attacks_to_run = [stage]
    x = x.contiguous()  # the package views gradients as [B, pixels], which refuses channels_last
    with _own_random_state(x.device), _own_trace_function(), _warnings_of(package.logger) as warnings:
        x_adv, predicted = package.run_standard_evaluation(x, y, batch_size=len(x))
    return x_adv, predicted != y, warnings


@contextmanager
def _own_random_state(device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        yield


@contextmanager
def _own_trace_function() -> Iterator[None]:
    # The package looks for dynamic defences by tracing a forward pass. Its counts are global and never reset,
    # and its tracer stays behind when the forward raises.
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    tracer = sys.gettrace()
    try:
        yield
    finally:
        sys.settrace(tracer)


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        self.messages.append(RANDOMIZED if 'version="rand"' in message else message)


@contextmanager
def _warnings_of(logger: logging.Logger) -> Iterator[list[str]]:
    collector = _Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(collector)
    try:
        yield collector.messages
    finally:
        logger.removeHandler(collector)
        logger.propagate = propagate
