"""The network as training and attacks run it: in a precision, compiled, as a working copy."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltat.config import TrainSection
from ltat.engine.graphs import Graphs, graphs_for
from ltat.engine.precision import autocast, dtype_of
from ltat.engine.tracing import Untraceable
from ltat.engine.trial import tried_copy
from ltat.engine.working_copy import FrozenCopy, WorkingCopy
from ltat.errors import LtatError
from ltat.models import Classifier


class StepNetwork(nn.Module):
    """Runs ``model`` in ``precision`` and returns its logits in fp32.

    The last layer of a model of ``ltat.models`` runs in fp32 too: differences of logits, which distillation takes, are
    small, and half precision would round them. Other modules run in ``precision`` as a whole, and their logits are
    cast. In ``"fp32"`` the logits keep the model's dtype, so that a float64 model stays a float64 model.

    Args:
        model: images [B, ch, H, W] → logits [B, C].
        precision: of the body, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        compiled: run the body through ``torch.compile``.
        graphs: where the CUDA graphs of attacks on this object are kept (:mod:`ltat.attacks.captured`); none if None.

    Raises:
        LtatError: unknown precision.
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
        # Compiles the method, not the module: a module would be registered, and its weights saved, a second time.
        self._features = torch.compile(model.features) if compiled and isinstance(model, Classifier) else None
        self._copy: WorkingCopy | Untraceable | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_copy": None}  # of another network; made anew on demand

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of images ``x`` [B, ch, H, W]."""
        if isinstance(self.model, Classifier) and (self.compiled or self.precision != "fp32"):
            return self.features_and_logits(x)[1]
        with autocast(x.device.type, self.precision):
            logits: Tensor = self.model(x)
        return _widened(logits)

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features [B, d] and logits [B, C], neither in half precision, from one forward.

        Raises:
            LtatError: the model is not of ``ltat.models``.
        """
        if not isinstance(self.model, Classifier):
            raise LtatError(f"{type(self.model).__name__} has no features(); use one of ltat.models")
        with autocast(x.device.type, self.precision):
            features = (self._features or self.model.features)(x)
        features = _widened(features)
        with autocast(x.device.type, "fp32"):  # a training attack wraps the trainer's network once more
            return features, self.model.classifier(features)

    def folded(self, images: Tensor) -> Callable[[Tensor], Tensor]:
        """The working copy with the network's present numbers, or this object where the model cannot be copied.

        The copy is kept, and every call writes into the same buffers. See :mod:`ltat.engine.working_copy`, and
        :meth:`describe_folded` for which of the two it is.

        Args:
            images: [n, ch, H, W], images like those that it will run on; a new copy of a model that is not of
                ``ltat.models`` is tried on noise of their shape.
        """
        with torch.inference_mode(False):  # a copy made in inference mode could not be refreshed outside of it
            if self._copy is None or (isinstance(self._copy, WorkingCopy) and not self._copy.fits):
                self._copy = self._new_copy(images)
            return self._copy.refresh() if isinstance(self._copy, WorkingCopy) else self

    def frozen(self, images: Tensor) -> nn.Module:
        """In half precision a copy of the network with its present numbers, as a module; else this object.

        It is for a network whose numbers do not change any more, as in an evaluation. Where the model cannot be copied,
        it is this object too. ``images`` are as in :meth:`folded`.
        """
        copy = self if self.precision == "fp32" else self.folded(images)
        return FrozenCopy(copy) if isinstance(copy, WorkingCopy) else self

    def describe_folded(self, images: Tensor) -> str:
        """What :meth:`folded` returns, in words."""
        self.folded(images)
        return f"the network itself: {self._copy}" if isinstance(self._copy, Untraceable) else str(self._copy)

    @property
    def num_classes(self) -> int | None:
        """Number of logits; of a model that is not of ``ltat.models`` only known where it has a working copy."""
        if isinstance(self.model, Classifier):
            return self.model.num_classes
        return self._copy.num_classes if isinstance(self._copy, WorkingCopy) else None

    def _new_copy(self, images: Tensor) -> WorkingCopy | Untraceable:
        dtype = None if self.precision == "fp32" else dtype_of(self.precision)
        try:
            return tried_copy(self.model, images, dtype, self.compiled)
        except Untraceable as why:
            return why


class JoinedNetwork(nn.Module):
    """Runs a network on the images of one rank and returns the rows of all ranks.

    Args:
        network: as the steps run it.
        join: rows of this rank's images → rows of the whole batch, with gradient.
    """

    def __init__(self, network: nn.Module, join: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network = network
        self.join = join
        self.training = network.training

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C] of the whole batch, of this rank's images ``x``."""
        return self.join(self.network(x))

    def features_and_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Penultimate features [B, d] and logits [B, C] of the whole batch."""
        features, logits = features_and_logits(self.network, x)
        return self.join(features), self.join(logits)


def step_network(model: nn.Module, settings: TrainSection) -> StepNetwork:
    """``model`` as the ``train`` settings say that a step runs it."""
    graphs = graphs_for(settings.graph, next(model.parameters()).device)
    return StepNetwork(model, settings.precision, settings.compile, graphs)


def features_and_logits(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """:meth:`StepNetwork.features_and_logits` of a :class:`StepNetwork`, or of a bare model in fp32."""
    network = model if isinstance(model, StepNetwork | JoinedNetwork) else StepNetwork(model)
    return network.features_and_logits(x)


def _widened(tensor: Tensor) -> Tensor:
    # What a user's model returns may not be a tensor; the caller checks it.
    half = isinstance(tensor, Tensor) and tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if half else tensor
