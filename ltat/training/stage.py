"""A stage of a run, the teacher's or the student's: its network, method, batches and settings."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from ltat.config import RunConfig
from ltat.data import Loader
from ltat.engine.global_norm import with_global_norms
from ltat.errors import LtatError
from ltat.methods import Method, find_method
from ltat.models import Classifier, build_model
from ltat.ranks import ALONE, Ranks
from ltat.seeding import torch_generator
from ltat.training.batches import build_loader
from ltat.training.error_context import rephrased
from ltat.training.normalization import normalization
from ltat.training.run_data import RunData
from ltat.training.warm_start import start_from


@dataclass
class Stage:
    """The parts that the training loop needs; ``name`` identifies the stage in the metrics and the random streams.

    Several ``ranks`` share each of its batches. ``unsaved`` names an attribute of the method that its state lacks in
    the middle of an epoch, if there is one.
    """

    name: str
    config: RunConfig
    model: Classifier
    method: Method
    loader: Loader
    device: torch.device
    ranks: Ranks = ALONE
    unsaved: str | None = None


def build_stage(
    name: str,
    config: RunConfig,
    data: RunData,
    device: torch.device,
    teacher: nn.Module | None = None,
    ranks: Ranks = ALONE,
    on_progress: Callable[[int, int], None] | None = None,
) -> Stage:
    """Build loader, method and model of a stage; new weights depend only on the training seed and the stage's name."""
    loader = build_loader(data.train, config, device, ranks, on_progress)
    counts = torch.as_tensor(loader.class_counts(1), device=device)
    building = rephrased(f"method {config.method} cannot be built", "correct it, or its settings")
    with building, initial_weights(config.seed.train, name):
        method = find_method(config.method)(config, counts, teacher)
        model = build_model(
            config.model.name,
            num_classes=data.train.num_classes,
            in_channels=data.train.images.shape[-1],
            normalize=normalization(config, data.train),
        )
        model = method.prepare_model(model)
        if not isinstance(model, Classifier):
            raise LtatError(f"prepare_model() of {config.method} returns a {type(model).__name__}; return the network")
    start_from(model, config, data.dataset.class_names)
    model = model.to(device).to(memory_format=torch.channels_last)
    if config.train.sync_bn:
        with_global_norms(model, ranks)
    return Stage(name, config, model, method, loader, device, ranks)


@contextmanager
def initial_weights(seed: int, stage: str) -> Iterator[None]:
    """Seed torch's CPU generator for the stage inside; on leaving, its previous state is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(torch_generator(seed, f"{stage}/init").initial_seed())
        yield
