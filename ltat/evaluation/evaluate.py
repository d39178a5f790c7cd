"""Evaluating a model: clean and under attack, overall and for the rare classes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from ltat.arguments import as_path, as_whole, shown
from ltat.attacks import ThreatModel
from ltat.attacks.checks import as_seed, check_channels, check_threat, tried
from ltat.attacks.modes import attack_mode
from ltat.attacks.threat import LINF_8
from ltat.data.holdout import stratified_subset
from ltat.data.split import Dataset, Split
from ltat.engine.network import StepNetwork
from ltat.engine.precision import dtype_of
from ltat.errors import LtatError
from ltat.evaluation.adjustment import Adjustment, LogitAdjusted
from ltat.evaluation.attacks import Outcome, Subject, as_tensor, parse_attack, predict
from ltat.evaluation.groups import class_groups
from ltat.evaluation.metrics import summarise
from ltat.models.base import Classifier, moved
from ltat.models.classes import check_classes

DEFAULT_ATTACKS = ("clean", "pgd20")
SELECTED_ON_TEST = "the best checkpoint was selected on the test set, as the papers do: its figures are optimistic"
"""The flag of every evaluation of such a checkpoint."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        model: name of the model.
        dataset: name of the data.
        threat: the threat model.
        labels: int64 [N].
        num_classes: C.
        train_counts: training images per class [C], or None.
        outcomes: by attack name, in the order asked for: which images stayed correct, settings, flags.
        flags: every flag, each with the attack it belongs to.
        adjust: what was taken off the network's logits, or None.
        failed: by name, the attacks that broke off and have no figure, each with its reason.
    """

    model: str
    dataset: str
    threat: ThreatModel
    labels: np.ndarray
    num_classes: int
    train_counts: Sequence[int] | np.ndarray | None
    outcomes: dict[str, Outcome]
    flags: list[str]
    adjust: Adjustment | None = None
    failed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A dictionary for ``json.dumps``; accuracies in percent, None where a group is empty or unknown."""
        return {
            "model": self.model,
            "dataset": self.dataset,
            "n": len(self.labels),
            "threat_model": {
                "norm": self.threat.norm,
                "eps": self.threat.eps,
                "box": list(self.threat.box),
            },
            **({} if self.adjust is None else {"adjustment": self.adjust.to_json()}),
            **{name: {**self.summary(name), **o.settings} for name, o in self.outcomes.items()},
            **({"failed": dict(self.failed)} if self.failed else {}),
            "flags": list(self.flags),
        }

    def summary(self, attack: str) -> dict[str, Any]:
        """Accuracies under one of the attacks; see ``ltat.evaluation.metrics.summarise``."""
        correct = self.outcomes[attack].correct
        return summarise(correct, self.labels, self.num_classes, self.train_counts)

    def table(self) -> Table:
        """The evaluation as a table for the terminal."""
        from ltat.evaluation.report import render_table  # noqa: PLC0415  (report stands on this class)

        return render_table([self])


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
) -> Evaluation:
    """Accuracy of ``model`` on ``data``, clean and under each attack.

    Robust means correct before and after the attack, so no robust accuracy can exceed the clean one. The model
    runs in eval mode and comes back as it was. Of several attacks one that raises has no figure and a flag.

    Args:
        model: images fp32 [B, ch, H, W] in [0, 1] → logits [B, C].
        data: a split, or a dataset, of which the test split is taken and, unless given, the training counts.
        attacks: one or several names such as ``clean``, ``pgd20``, ``autoattack``; see ``ltat.evaluation.attacks``.
        threat: norm, ε and box of every attack.
        train_counts: training images per class [C], which define tail, many, medium and few.
        adjust: post-hoc logit adjustment, inside the network that is attacked; none if None or of tau 0.
        n_examples: evaluate that many images, classes as even as they allow; all if None.
        batch_size: images at once.
        seed: of every random start.
        device: where to run; the model's own if None. The model is moved there, and stays.
        precision: of the network body, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        name: of the model, for the report; its class if empty.
        state_dir: folder in which AutoAttack keeps finished batches, so that an interrupted run can go on.
        on_progress: called as (stage, images done, images in all).

    Raises:
        LtatError: an unknown attack, a model of another number of classes, or of other ones where both have names
            (``ltat.models.order_classes`` maps them), one that adjusts its logits itself where
            ``adjust`` is given, or a setting out of range.
    """
    _check_threat(threat)
    chosen = _parse(attacks, threat)
    dtype_of(precision)
    batch_size, seed = as_whole("batch_size", batch_size, 1), as_seed(seed)
    n_examples = None if n_examples is None else as_whole("n_examples", n_examples, 1)
    state_dir = None if state_dir is None else as_path("state_dir", state_dir)
    if not isinstance(device, torch.device | str | None):
        raise LtatError(f"device is {shown(device)}: give a name, such as cpu or cuda")
    split, dataset, train_counts = _resolve(data, train_counts)
    if isinstance(model, Classifier):
        names = data.class_names or split.class_names
        check_classes(model, names, "--classes-by-name, from Python with ltat.models.order_classes")
    class_groups(split.num_classes, train_counts)  # unfit counts must not wait until the attacks are through
    check_channels(model, split.images.shape[-1])
    if n_examples is not None:
        split = split.subset(stratified_subset(split.labels, n_examples, split.num_classes))
    adjust = None if adjust is None or adjust.tau == 0 else adjust
    deployed = model if adjust is None else LogitAdjusted(model, adjust, precision)
    subject, flags = _meet(
        deployed if device is None else moved(deployed, device),
        split,
        threat=threat,
        batch_size=batch_size,
        seed=seed,
        precision=precision,
        state_dir=state_dir,
        on_progress=on_progress or _silent,
    )
    outcomes, failed = _attack(subject, chosen)
    flags += [f"{attack}: broke off and has no figure ({reason})" for attack, reason in failed.items()]
    flags += [f"{attack}: {flag}" for attack, outcome in outcomes.items() for flag in outcome.flags]
    flags += _contradictions(outcomes) + _long_tailed_test(data)
    return Evaluation(
        model=name or type(model).__name__,
        dataset=dataset,
        threat=threat,
        labels=split.labels,
        num_classes=split.num_classes,
        train_counts=train_counts,
        outcomes=outcomes,
        flags=flags,
        adjust=adjust,
        failed=failed,
    )


def _attack(
    subject: Subject, chosen: dict[str, Callable[[Subject], Outcome]]
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """The outcome of each attack, and why those broke off that did; raised where nothing else would be left."""
    outcomes: dict[str, Outcome] = {}
    failed: dict[str, str] = {}
    for attack, run in chosen.items():
        try:
            outcomes[attack] = run(subject)
        except Exception as error:  # whatever it is, it must not cost hours of other attacks
            if len(chosen) == 1:
                raise
            failed[attack] = str(error).partition("\n")[0] or type(error).__name__
    return outcomes, failed


def _resolve(
    data: Split | Dataset, train_counts: Sequence[int] | np.ndarray | None
) -> tuple[Split, str, Sequence[int] | np.ndarray | None]:
    if isinstance(data, Split):
        return data, "", train_counts
    if not isinstance(data, Dataset):
        raise LtatError(f"data is of type {type(data).__name__}: give a Split or a Dataset, such as load_dataset gives")
    return data.test, data.name, data.train.counts if train_counts is None else train_counts


def _meet(model: nn.Module, split: Split, *, precision: str, **settings: Any) -> tuple[Subject, list[str]]:
    """Runs the model on the clean images, checks what it gives, and makes it the attacks' subject."""
    device = next(model.parameters(), torch.empty(0)).device
    network = StepNetwork(model, precision)
    batch_size, on_progress = settings["batch_size"], settings["on_progress"]
    correct, undefined = [], 0
    for start in range(0, len(split), batch_size):
        x = as_tensor(split.images[start : start + batch_size]).to(device)
        y = torch.from_numpy(split.labels[start : start + batch_size]).to(device)
        if start == 0:
            _check_classes(network, x[:1], split.num_classes)
        right, finite = predict(network, x, y)
        correct.append(right.cpu().numpy())
        undefined += int((~finite).sum())
        on_progress("clean", start + len(y), len(split))
    subject = Subject(
        network=network,
        images=split.images,
        labels=split.labels,
        correct=np.concatenate(correct),
        device=device,
        **settings,
    )
    wrong = f"clean: {undefined} of {len(split)} images have logits that are not finite and count as wrong"
    return subject, [wrong] if undefined else []


def _check_classes(network: StepNetwork, x: Tensor, num_classes: int) -> None:
    with attack_mode(network, "eval"):
        shape = tuple(tried(network, x, "the model").shape)
    if shape != (1, num_classes):
        raise LtatError(
            f"the model answers one image with shape {shape} where the data have {num_classes} classes: "
            "evaluate it on the dataset it was trained for"
        )


def _contradictions(outcomes: dict[str, Outcome]) -> list[str]:
    """Results that cannot both be right: more accurate under attack, or AutoAttack weaker than another."""
    share = {attack: float(outcome.correct.mean()) for attack, outcome in outcomes.items()}
    flags = [
        f"{attack}: accuracy {robust:.2%} under attack is above the clean {share['clean']:.2%}"
        for attack, robust in share.items()
        if "clean" in share and robust > share["clean"]
    ]
    strongest = share.get("autoattack")
    if strongest is None:
        return flags
    return flags + [
        f"autoattack: leaves {strongest:.2%}, more than {attack} with {robust:.2%}: its attacks were misled"
        for attack, robust in share.items()
        if robust < strongest
    ]


def _long_tailed_test(data: Split | Dataset) -> list[str]:
    if not isinstance(data, Dataset) or data.test_imbalance_ratio is None:
        return []
    return [
        f"test set: a long-tailed subset of {len(data.test)} images, imbalance ratio {data.test_imbalance_ratio:g}; "
        "only balanced accuracy, the mean over classes, compares with that on a balanced test set"
    ]


def _parse(attacks: Sequence[str] | str, threat: ThreatModel) -> dict[str, Callable[[Subject], Outcome]]:
    if not isinstance(attacks, str | Sequence):
        raise LtatError(f"attacks are {shown(attacks)}: give names, such as ['clean', 'pgd20']")
    if not attacks:
        raise LtatError("no attack was named: give at least 'clean'")
    return {attack: parse_attack(attack, threat) for attack in ([attacks] if isinstance(attacks, str) else attacks)}


def _check_threat(threat: ThreatModel) -> None:
    check_threat(threat)
    if isinstance(threat.eps, Tensor):
        raise LtatError("an evaluation has one radius for all images: give eps as a number")


def _silent(stage: str, done: int, total: int) -> None:
    pass
