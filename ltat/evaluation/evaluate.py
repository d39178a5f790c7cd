"""Evaluating a model, clean and under attack, overall and for the rare classes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ltat.arguments import as_path, as_whole, shown
from ltat.attacks import ThreatModel
from ltat.attacks.checks import as_seed, check_channels, check_reach, check_threat, trial_logits
from ltat.attacks.modes import attack_mode
from ltat.attacks.threat import LINF_8
from ltat.data.holdout import stratified_subset
from ltat.data.plausibility import check_pixels
from ltat.data.split import Dataset, Split
from ltat.engine.network import StepNetwork
from ltat.engine.precision import dtype_of
from ltat.errors import LtatError
from ltat.evaluation.adjustment import Adjustment, adjusted
from ltat.evaluation.attacks import Attack, AttackInputs, Outcome, parse_attack
from ltat.evaluation.flags import attack_flags, clean_flags, long_tailed_test
from ltat.evaluation.groups import class_groups
from ltat.evaluation.report import Evaluation
from ltat.joint_work import failing_together, reason_of
from ltat.models.base import Classifier, moved
from ltat.models.classes import check_classes
from ltat.ranks import ALONE, RankEnded, Ranks

DEFAULT_ATTACKS = ("clean", "pgd20")


def evaluate(
    model: nn.Module,
    data: Split | Dataset,
    *,
    attacks: Sequence[str] | str = DEFAULT_ATTACKS,
    threat: ThreatModel = LINF_8,
    train_counts: Sequence[int] | np.ndarray | None = None,
    adjust: Adjustment | None = None,
    n_examples: int | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str | None = None,
    precision: str = "fp32",
    name: str = "",
    state_dir: str | Path | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Accuracy of ``model`` on ``data``, clean and under each attack.

    Robust means correct before and after the attack, so robust accuracy cannot exceed clean accuracy. The model runs in
    eval mode and is restored. If one of several attacks raises, it has no figure, and a flag states the reason.

    Args:
        model: images fp32 [B, ch, H, W] in [0, 1] → logits [B, C].
        data: a split, or a dataset; a dataset's test split is used, and its training counts unless they are given.
        attacks: one or several names such as ``clean``, ``pgd20``, ``autoattack``; see ``ltat.evaluation.attacks``.
        threat: norm, ε and box of every attack.
        train_counts: training images per class [C], which define tail, many, medium and few.
        adjust: post-hoc logit adjustment, inside the network that is attacked; none if None or if its tau is 0.
        n_examples: number of images to evaluate, as evenly from all classes as possible; all if None.
        batch_size: images in a batch.
        seed: of every random start.
        device: where to run; the model's device if None. The model is moved there and not moved back.
        precision: of the network body, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        name: of the model, for the report; its class if empty.
        state_dir: folder in which AutoAttack saves finished batches, so that an interrupted run can continue.
        on_progress: called as (stage, images done, all images).
        ranks: those that share the batches, started by torchrun (:func:`ltat.ranks.ranks_of_torchrun`). All of them
            call this function with the same arguments, but for ``device`` and ``on_progress``, and return what one
            process returns.

    Raises:
        LtatError: an unknown attack, a setting out of range, a model with other classes
            (``ltat.models.order_classes`` maps named ones), or a model that already adjusts its logits with ``adjust``.
    """
    _check_settings(threat, precision, device)
    batch_size, seed = as_whole("batch_size", batch_size, 1), as_seed(seed)
    state_dir = None if state_dir is None else as_path("state_dir", state_dir)
    images = _resolve(data, train_counts, n_examples)
    values = int(np.prod(images.split.images.shape[1:]))
    check_reach(threat, values)
    chosen = _parse(attacks, threat, values)
    _check_model(model, images)
    adjust = None if adjust is None or adjust.tau == 0 else adjust
    deployed = model if adjust is None else _adjusted(model, adjust, images.split.num_classes)
    network = StepNetwork(deployed if device is None else moved(deployed, device), precision)
    inputs = AttackInputs(network, images.split, threat, batch_size, seed, state_dir, on_progress or _silent, ranks)
    return _evaluated(inputs, chosen, images, name or type(model).__name__, adjust)


class _Images(NamedTuple):
    """The images to evaluate, and the properties of their dataset that the evaluation needs."""

    split: Split
    dataset: str
    train_counts: Sequence[int] | np.ndarray | None
    class_names: tuple[str, ...]
    flags: list[str]


def _resolve(data: Split | Dataset, counts: Sequence[int] | np.ndarray | None, n_examples: int | None) -> _Images:
    if not isinstance(data, Split | Dataset):
        raise LtatError(f"data is of type {type(data).__name__}; give a Split or a Dataset, such as load_dataset gives")
    split, dataset = (data, "") if isinstance(data, Split) else (data.test, data.name)
    if counts is None and isinstance(data, Dataset):
        counts = data.train.counts
    class_groups(split.num_classes, counts)  # refuses wrong counts before the attacks run
    names = data.class_names or split.class_names
    if isinstance(split.images, np.ndarray) and len(split) > 1:  # a single image may have one colour
        check_pixels(split.images, "evaluated")
    if n_examples is not None:
        n_examples = as_whole("n_examples", n_examples, 1)
        split = split.subset(stratified_subset(split.labels, n_examples, split.num_classes))
    return _Images(split, dataset, counts, names, long_tailed_test(data))


def _check_model(model: nn.Module, images: _Images) -> None:
    if isinstance(model, Classifier):
        check_classes(model, images.class_names, "--classes-by-name, from Python with ltat.models.order_classes")
    check_channels(model, images.split.images.shape[-1])


def _adjusted(model: nn.Module, adjust: Adjustment, num_classes: int) -> nn.Module:
    counts = len(adjust.train_counts)
    if counts != num_classes:
        raise LtatError(f"the adjustment has {counts} counts and the data {num_classes} classes; give one per class")
    return adjusted(model, adjust)


def _evaluated(
    inputs: AttackInputs, chosen: dict[str, Attack], images: _Images, model: str, adjust: Adjustment | None
) -> Evaluation:
    with failing_together(inputs.ranks):
        _check_logits(inputs)
        flags = clean_flags(inputs)  # classifies the clean images, outside of any attack
    outcomes, failed = _attack(inputs, chosen)
    return Evaluation(
        model=model,
        dataset=images.dataset,
        threat=inputs.threat,
        labels=inputs.split.labels,
        num_classes=inputs.split.num_classes,
        train_counts=images.train_counts,
        outcomes=outcomes,
        flags=flags + attack_flags(outcomes, failed) + images.flags,
        adjust=adjust,
        failed=failed,
    )


def _check_logits(inputs: AttackInputs) -> None:
    """Run the network on one image before the attacks."""
    x, _ = inputs.read(np.arange(1))
    with attack_mode(inputs.answering, "eval"):
        shape = tuple(trial_logits(inputs.answering, x, "the model").shape)
    if shape != (1, inputs.split.num_classes):
        raise LtatError(
            f"the model returns shape {shape} for one image where the data have {inputs.split.num_classes} classes; "
            "evaluate it on the dataset it was trained for"
        )


def _attack(inputs: AttackInputs, chosen: dict[str, Attack]) -> tuple[dict[str, Outcome], dict[str, str]]:
    """The outcome of each attack, and the errors of those that failed; an error of the only attack is raised."""
    outcomes: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    for attack, run in chosen.items():
        try:
            with failing_together(inputs.ranks):
                outcomes[attack] = run(inputs)
        except RankEnded:
            raise
        except Exception as error:  # no error of one attack may lose the results of the others
            if len(chosen) == 1:
                raise
            failed[attack] = reason_of(error)
    return outcomes, failed


def _parse(attacks: Sequence[str] | str, threat: ThreatModel, values: int) -> dict[str, Attack]:
    if not isinstance(attacks, str | Sequence):
        raise LtatError(f"attacks are {shown(attacks)}; give names, such as ['clean', 'pgd20']")
    if not attacks:
        raise LtatError("no attack was named; give at least 'clean'")
    names = [attacks] if isinstance(attacks, str) else attacks
    return {attack: parse_attack(attack, threat, values) for attack in names}


def _check_settings(threat: ThreatModel, precision: str, device: torch.device | str | None) -> None:
    check_threat(threat)
    if isinstance(threat.eps, Tensor):
        raise LtatError("an evaluation has one radius for all images; give eps as a number")
    dtype_of(precision)
    if not isinstance(device, torch.device | str | None):
        raise LtatError(f"device is {shown(device)}; give a name, such as cpu or cuda")


def _silent(stage: str, done: int, total: int) -> None:
    pass
