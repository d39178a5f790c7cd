"""A rehearsal: training steps on a copy of the stage, before the run folder is created."""

import copy
import io
from dataclasses import replace
from typing import Any

import torch

from ltat.data import Batch
from ltat.data.loaders import Shared
from ltat.engine.network import step_network
from ltat.errors import LtatError
from ltat.methods import LossTerms, Method, Step
from ltat.methods.awp import perturbed_weights
from ltat.seeding import torch_generator
from ltat.training.error_context import rephrased
from ltat.training.method_state import lost_within_epoch, plain_attributes
from ltat.training.optimizer import build_optimizer
from ltat.training.run_data import RunData, first_images
from ltat.training.stage import Stage

REMEDY = "change the model, the method or the batches"
WHOLE_BATCH = "a loss sees the whole batch: complete by step.whole(...) what another network computes from its images"
REMEDY_OF_RANKS = f"{WHOLE_BATCH}, or {REMEDY}"


def rehearse(stage: Stage, data: RunData) -> str | None:
    """Run one step of the first and of the last epoch, attack and update, on a copy.

    The batch has as many images as the smallest share of a batch, at most two. Returns the result of
    :func:`ltat.training.method_state.lost_within_epoch` after a step.

    Raises:
        LtatError: the step fails.
    """
    trial = copy.deepcopy((stage.model, stage.method))
    settings, method = stage.config.train, trial[1]
    network = step_network(trial[0], settings).train()
    batch = trial_batch(stage, data, min(2, smallest_share(stage)))
    what = f"a training step on images {tuple(batch.images.shape)} fails"
    with rephrased(what, REMEDY if batch.shared is None else REMEDY_OF_RANKS):
        lost, before = [], plain_attributes(method)
        if stage.config.average.kind != "none":
            method.take_average(copy.deepcopy(trial[0]).requires_grad_(False).eval())
        method.initialise(trial[0])
        for epoch in dict.fromkeys((1, settings.epochs)):
            counts = torch.as_tensor(stage.loader.class_counts(epoch), device=stage.device)
            noise = torch_generator(0, "rehearsal", device=stage.device)
            step = Step(network, batch, epoch, settings.epochs, counts, batch.images, noise)
            rehearse_step(method, step)
            lost.append(lost_within_epoch(method, saved_state(method), before, epoch))
            method.end_epoch(epoch)
        build_optimizer(trial[0], stage.config.optim).step()
        saved_state(method)
    return next(filter(None, lost), None)


def smallest_share(stage: Stage) -> int:
    """The images of a rank in the smallest batch of the first epoch."""
    size, ranks = stage.loader.batch_size, stage.ranks
    last = 0 if stage.config.train.drop_last else stage.loader.plan.size(1) % size
    return (last or size) // ranks.size


def trial_batch(stage: Stage, data: RunData, n: int) -> Batch:
    """The first ``n`` images of the training set for every rank, unaltered."""
    ranks = stage.ranks
    share = ranks.share(n * ranks.size)
    images = first_images(data, share.total, stage.device)[share.rows]
    labels = torch.from_numpy(data.train.labels[: share.total]).to(stage.device)
    indices = torch.arange(share.total, device=stage.device)
    shared = None if ranks.size == 1 else Shared(labels, indices, share, ranks)
    return Batch(images, labels[share.rows], indices[share.rows], shared)


def rehearse_step(method: Method, step: Step) -> None:
    """Call every hook of a method for the first step of an epoch, up to the gradients."""
    method.begin_epoch(step.epoch)
    step = replace(step, x_adv=method.attack(step)).for_loss()
    with perturbed_weights(step, method.config, method.loss):
        terms = method.loss(step)
        check_terms(terms, step, method)
        check_wholeness(terms.loss.detach(), step, method)
        terms.loss.backward()
    method.end_step(step, terms.detached())


def check_terms(terms: object, step: Step, method: Method) -> None:
    """Check the return value of a method's loss.

    Raises:
        LtatError: it is not as :class:`ltat.methods.LossTerms` describes, or the loss is not finite.
    """
    if not isinstance(terms, LossTerms):
        raise LtatError(f"loss() of {type(method).__name__} returns a {type(terms).__name__}; return LossTerms")
    wanted = (len(step.batch.labels), len(step.class_counts))
    for name, value, shape in (("loss", terms.loss, ()), ("logits", terms.logits, wanted)):
        _require_shape(name, value, shape)
    for name, value in dict(terms.logs).items():
        _require_shape(f"logs[{name!r}]", value, ())
    served = bool(step.class_counts[step.batch.labels].all())  # a class that is never drawn has the prior 0
    if served and not terms.loss.isfinite():
        raise LtatError(f"the loss of the first step is {terms.loss.item()}; lower the constants of the loss")


def check_wholeness(loss: torch.Tensor, step: Step, method: Method) -> None:
    """Check that the loss is that of the whole batch: the same on all ranks, whose images differ.

    Raises:
        LtatError: it is another one on each rank.
    """
    shared = step.batch.shared
    if shared is None:
        return
    mean = loss.clone()
    shared.ranks.mean_([mean])
    if shared.ranks.any_(not torch.allclose(loss, mean, rtol=1e-3, equal_nan=True))[0]:
        raise LtatError(
            f"the loss of {type(method).__name__} is {loss.item():g} on one rank and {mean.item():g} on average; "
            f"{WHOLE_BATCH}"
        )


def _require_shape(name: str, value: object, shape: tuple[int, ...]) -> None:
    found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    if found != shape:
        raise LtatError(f"{name} of the method's LossTerms is {found}; return a tensor of shape {shape}")


def saved_state(method: Method) -> dict[str, Any]:
    """The method's state after writing and reading it in the format of the file to resume from.

    Raises:
        LtatError: the state contains more than tensors, numbers, strings and containers of them.
    """
    file = io.BytesIO()
    try:
        torch.save(method.state_dict(), file)
        state: dict[str, Any] = torch.load(io.BytesIO(file.getvalue()), map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types for what it cannot write or does not read
        name = type(method).__name__
        raise LtatError(f"state_dict() of {name} cannot be saved; return tensors, numbers and strings only") from None
    return state
