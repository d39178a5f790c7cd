"""The network as a step of training or of an attack runs it: its precision, its compiled body, its working copy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltat.engine.graphs import Graphs
from ltat.engine.precision import autocast, dtype_of
from ltat.engine.working_copy import Untraceable, WorkingCopy
from ltat.errors import LtatError
from ltat.models import Classifier


class StepNetwork(nn.Module):
    """Runs ``model`` in ``precision`` and hands back its logits in fp32.

    Of our own models the last layer runs in fp32 too: differences of logits, as the distillation takes them, are
    small, and half precision would round them. Other modules run whole, and their logits are cast.
    In ``"fp32"`` the logits keep the model's own dtype, so that a float64 model stays a float64 model.
    With ``compiled`` the body runs through ``torch.compile``. With ``graphs`` an attack on this object is replayed as
    a CUDA graph where one can hold it (:mod:`ltat.attacks.captured`); they are kept there, and go with it.
    """

    def __init__(
        self, model: nn.Module, precision: str = "fp32", compiled: bool = False, graphs: Graphs | None = None
    ) -> None:
        super().__init__()
        dtype_of(precision)
        self.model = model
        self.precision = precision
        self.compiled = compiled
        self.graphs = graphs
        # Made of a method and not of a module: that one would be registered, and its weights saved, a second time.
        self._features = torch.compile(model.features) if compiled and isinstance(model, Classifier) else None
        self._copy: WorkingCopy | Untraceable | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # one of another network; made anew when it is asked for

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images ``x`` [B, C, H, W]."""
        if isinstance(self.model, Classifier) and (self.compiled or self.precision != "fp32"):
            return self.features_and_logits(x)[1]
        with autocast(x.device.type, self.precision):
            logits: Tensor = self.model(x)
        return _widened(logits)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features [B, d] and logits [B, C], neither in half precision, from one forward.

        Raises:
            LtatError: the model is none of ours and does not tell its features.
        """
        if not isinstance(self.model, Classifier):
            raise LtatError(f"{type(self.model).__name__} does not tell its features; use one of ltat.models")
        with autocast(x.device.type, self.precision):
            features = (self._features or self.model.features)(x)
        features = _widened(features)
        with autocast(x.device.type, "fp32"):  # a training attack wraps the trainer's network once more
            return features, self.model.classifier(features)

    def folded(self) -> Callable[[Tensor], Tensor]:
        """What an attack in evaluation mode runs: the working copy with the network's present numbers, or itself.

        The copy is made once and kept, so that an attack at every step of a training brings one set of buffers up to
        date. See :mod:`ltat.engine.working_copy`; :meth:`describe_folded` tells which it is.
        """
        with torch.inference_mode(False):  # a copy made inside could not be brought up to date outside
            if self._copy is None or (isinstance(self._copy, WorkingCopy) and not self._copy.fits):
                self._copy = self._new_copy()
            return self._copy.refresh() if isinstance(self._copy, WorkingCopy) else self

    def describe_folded(self) -> str:
        """What :meth:`folded` returns, in words."""
        self.folded()
        return f"the network itself: {self._copy}" if isinstance(self._copy, Untraceable) else str(self._copy)

    def _new_copy(self) -> WorkingCopy | Untraceable:
        dtype = None if self.precision == "fp32" else dtype_of(self.precision)
        try:
            return WorkingCopy(self.model, dtype, self.compiled)
        except Untraceable as why:
            return why


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """:meth:`StepNetwork.features_and_logits` of a model that is wrapped already, or in full precision."""
    network = model if isinstance(model, StepNetwork) else StepNetwork(model)
    return network.features_and_logits(x)


def _widened(tensor: Tensor) -> Tensor:
    half = isinstance(tensor, Tensor) and tensor.dtype in (torch.bfloat16, torch.float16)  # a foreign model may err
    return tensor.float() if half else tensor
