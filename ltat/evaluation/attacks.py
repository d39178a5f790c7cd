"""The attacks of an evaluation, by name: ``clean``, ``pgd20``, ``cw20``, ``lsa20``, ``deepfool``, ``autoattack``.

To add one, write an ``Attack`` that goes through its images by :meth:`AttackInputs.over_batches`, so that several ranks
share them, and enter it in ``ATTACKS``; another loss for PGD is one line in ``PGD_LOSSES``.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltat.arguments import shown
from ltat.attacks import OBJECTIVES, Objective, ThreatModel, cross_entropy, pgd
from ltat.attacks.checks import as_step_size
from ltat.attacks.clean_images import CleanImages
from ltat.attacks.deepfool import OVERSHOOT, STEPS, deepfool
from ltat.attacks.modes import attack_mode
from ltat.attacks.threat import LINF_8
from ltat.data.images import as_floats
from ltat.data.split import Split
from ltat.engine.network import StepNetwork
from ltat.errors import LtatError
from ltat.joint_work import over_ranks
from ltat.ranks import ALONE, Ranks
from ltat.seeding import torch_generator
from ltat.units import MAX_STEPS

Found = TypeVar("Found")
OnProgress = Callable[[str, int, int], None]
START = "uniform"
COUNTED = (
    "adversarial images broke the threat model and were not counted",
    "adversarial images have logits that are not finite and count as wrong",
    "clean images have a zero gradient: it may be masked",
)
LSA_SPREAD = 10.0  # the least likely class then has a probability of about e^-10, which fp32 can add to 1


@dataclass(frozen=True, eq=False)
class AttackInputs:
    """The inputs of every attack of an evaluation.

    Attributes:
        network: the classifier in its precision; all attacks share its working copy.
        split: images uint8 [N, H, W, ch], where pixel value v means v / 255, and labels int64 [N].
        threat: the threat model.
        batch_size: images in a batch.
        seed: of every random start.
        state_dir: folder in which a long attack saves its state, or None.
        on_progress: called as (stage, done, total).
        ranks: those that share the batches of each attack.
    """

    network: StepNetwork
    split: Split
    threat: ThreatModel
    batch_size: int
    seed: int
    state_dir: Path | None
    on_progress: OnProgress
    ranks: Ranks = ALONE

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters(), torch.empty(0)).device

    @cached_property
    def answering(self) -> nn.Module:
        """The network whose answers count: in half precision the working copy that is attacked, too."""
        return self.network.frozen(self.read(np.arange(1))[0])

    @property
    def correct(self) -> np.ndarray:
        """bool [N], images that the network classifies correctly before any attack."""
        return self._clean_predictions[0]

    @property
    def finite(self) -> np.ndarray:
        """bool [N], images whose logits are finite before any attack."""
        return self._clean_predictions[1]

    @cached_property
    def _clean_predictions(self) -> tuple[np.ndarray, np.ndarray]:
        def classify(batch: np.ndarray) -> np.ndarray:
            return torch.stack(predict(self.answering, *self.read(batch))).cpu().numpy()

        correct, finite = np.concatenate(self.over_batches("clean", np.arange(len(self.split)), classify), axis=1)
        return correct, finite

    def over_batches(self, stage: str, chosen: np.ndarray, work: Callable[[np.ndarray], Found]) -> list[Found]:
        """What ``work`` gives for the batches of the chosen positions, in order; the ranks share them.

        ``work`` is called with the positions of a batch, int64 [B], see :func:`ltat.joint_work.over_ranks`.
        """
        batches = [chosen[start : start + self.batch_size] for start in range(0, len(chosen), self.batch_size)]
        return over_ranks(self.ranks, stage, batches, lambda number, batch: work(batch), self.on_progress)

    def read(self, batch: np.ndarray) -> tuple[Tensor, Tensor]:
        """The images fp32 [B, ch, H, W] in [0, 1] and labels [B] at these positions."""
        x = as_floats(self.split.images[batch]).to(self.device)
        return x, torch.from_numpy(self.split.labels[batch]).to(self.device)


@dataclass(frozen=True)
class Outcome:
    """The result of an attack.

    Attributes:
        correct: bool [N], correct before and after the attack.
        settings: of the attack, for the report.
        flags: warnings to check before quoting the number, one sentence each.
    """

    correct: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)


Attack = Callable[[AttackInputs], Outcome]


def predict(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Which images are classified correctly, and which have finite logits: two bool [B].

    An image whose logits are not finite counts as wrong: NaN compares false with everything, so its class would be
    arbitrary.
    """
    with attack_mode(network, "eval"), torch.inference_mode():
        logits = network(x)
    finite = logits.isfinite().all(1)
    return (logits.argmax(1) == y) & finite, finite


def clean(inputs: AttackInputs) -> Outcome:
    """No attack."""
    return Outcome(inputs.correct.copy())


def gradient_attack(inputs: AttackInputs, *, name: str, steps: int, step_size: float | None = None) -> Outcome:
    """PGD from a uniform start, with the model in eval mode, on the images that are correct before the attack.

    K = ``steps`` steps of ``step_size``, which is ε/4 if None.
    """
    correct = inputs.correct.copy()
    attacked = np.flatnonzero(correct)

    def attack(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x, y = inputs.read(batch)
        generator = torch_generator(inputs.seed, f"evaluate {name}{steps}", int(batch[0]))
        x_adv = pgd(
            inputs.network,
            x,
            y,
            threat=inputs.threat,
            steps=steps,
            step_size=step_size,
            start=START,
            objective=PGD_LOSSES[name][1],
            generator=generator,
            precision=inputs.network.precision,
        )
        # A NaN gradient gives a NaN image, which is neither an adversarial example nor evidence of robustness.
        illegal = ~inputs.threat.contains(x_adv, x) & x_adv.isfinite().flatten(1).all(1)
        survived, finite = predict(inputs.answering, x_adv, y)
        counts = np.array([int(illegal.sum()), int((~finite).sum()), _zero_gradients(inputs, x, y)])
        return (survived | illegal).cpu().numpy(), counts

    found = inputs.over_batches(f"{name}{steps}", attacked, attack)
    if found:
        correct[attacked] = np.concatenate([survived for survived, _ in found])
    counts = sum((counts for _, counts in found), np.zeros(len(COUNTED), int))
    flags = [f"{count} of {len(attacked)} {what}" for what, count in zip(COUNTED, counts, strict=True) if count]
    return Outcome(correct, {"attack": _pgd_settings(inputs.threat, steps, name, step_size)}, flags)


def _pgd_settings(threat: ThreatModel, steps: int, name: str, step_size: float | None) -> dict[str, Any]:
    return {
        "steps": steps,
        "step_size": threat.eps / 4 if step_size is None else step_size,
        "start": START,
        "mode": "eval",
        "loss": PGD_LOSSES[name][0],
    }


def _zero_gradients(inputs: AttackInputs, x: Tensor, y: Tensor) -> int:
    """The number of images whose cross-entropy gradient is exactly zero: PGD cannot move them, other attacks may."""
    with attack_mode(inputs.answering, "eval"), torch.inference_mode(False), torch.enable_grad():
        leaf, y = x.clone().requires_grad_(True), y.clone()  # neither can be a tensor of inference mode
        loss = F.cross_entropy(inputs.answering(leaf), y, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, leaf)
    return int((gradient.flatten(1) == 0).all(1).sum())


def deepfool_attack(inputs: AttackInputs) -> Outcome:
    """DeepFool in the norm of the threat model, brought back into its ball, on the images that are correct before.

    The settings of the report also have what DeepFool does without a radius: the share of all images that stays
    correct, and the median distance at which the others are fooled.
    """
    correct = inputs.correct.copy()
    attacked = np.flatnonzero(correct)
    threat = inputs.threat

    def attack(batch: np.ndarray) -> np.ndarray:
        x, y = inputs.read(batch)
        free = deepfool(inputs.answering, x, y, norm=threat.norm, box=threat.box)
        moved = (free - x).flatten(1).norm(p=2 if threat.norm == "l2" else torch.inf, dim=1)
        survived, resisted = (predict(inputs.answering, near, y)[0] for near in (threat.project(free, x), free))
        return torch.stack([survived, resisted, moved]).cpu().numpy()

    found = inputs.over_batches("deepfool", attacked, attack)
    survived, resisted, moved = np.concatenate(found, axis=1) if found else np.zeros((3, 0))
    correct[attacked] = survived > 0
    distances = moved[resisted == 0]
    settings = {
        "steps": STEPS,
        "overshoot": OVERSHOOT,
        "without_radius": 100.0 * float(resisted.sum()) / max(1, len(correct)),
        "median_distance": float(np.median(distances)) if len(distances) else None,
    }
    return Outcome(correct, {"attack": settings})


def auto_attack(inputs: AttackInputs) -> Outcome:
    """AutoAttack ``standard`` on all images; see ``ltat.attacks.autoattack``."""
    from ltat.attacks.autoattack import autoattack_verdicts  # noqa: PLC0415  (only this attack needs its package)

    correct = inputs.correct.copy()
    attacked = np.flatnonzero(correct)
    if len(attacked) == 0:
        return Outcome(correct, {"stages": {"clean": 0}}, ["no image is classified correctly, so nothing was attacked"])
    result = autoattack_verdicts(
        inputs.network.model,
        CleanImages.of_stored(inputs.split.images, attacked),
        torch.from_numpy(inputs.split.labels[attacked]),
        threat=inputs.threat,
        batch_size=inputs.batch_size,
        seed=inputs.seed,
        state_path=None if inputs.state_dir is None else inputs.state_dir / "autoattack",
        precision=inputs.network.precision,
        on_progress=lambda stage, done, total: inputs.on_progress(f"autoattack {stage}", done, total),
        ranks=inputs.ranks,
    )
    correct[attacked] = result.robust.numpy()
    stages = {stage: int(alive.sum()) for stage, alive in result.survivors.items()}
    return Outcome(correct, {"stages": stages, **result.settings}, list(result.flags))


def ce_of_spread(logits: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Cross-entropy of each image's logits, scaled by a constant to a range of :data:`LSA_SPREAD`: [B].

    It is the same for c·logits with any c > 0, so that large logits do not saturate softmax.
    """
    below = logits - logits.amax(1, keepdim=True)
    spread = -below.detach().amin(1, keepdim=True)
    return cross_entropy(below * (LSA_SPREAD / spread.clamp_min(torch.finfo(spread.dtype).tiny)), y, x_adv)


def ce_of_tenfold(logits: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    """Cross-entropy of ten times the logits, [B]: the LSA of AT-BSL's code, only for comparison with its figures."""
    return cross_entropy(10 * logits, y, x_adv)


PGD_LOSSES: dict[str, tuple[str, Objective]] = {
    "pgd": ("ce", cross_entropy),
    "cw": ("cw", OBJECTIVES["cw"]),
    "lsa": (f"ce of logits {LSA_SPREAD:g} apart", ce_of_spread),
    "tenfold": ("ce of 10·logits", ce_of_tenfold),
}
"""Attacks whose names end in the number of steps: the name of the loss in reports, and the loss."""

ATTACKS: dict[str, Attack] = {"clean": clean, "deepfool": deepfool_attack, "autoattack": auto_attack}


def left_out(attacks: Collection[str], num_classes: int, norm: str, size: tuple[int, ...]) -> list[str]:
    """Lines on the stages that these attacks leave out, for ``num_classes`` and images of ``size`` (height, width).

    Raises:
        ModuleNotFoundError: an attack needs a package that is not installed.
    """
    if "autoattack" not in attacks:
        return []
    from ltat.attacks import official  # noqa: PLC0415  (only this attack needs its package)

    runs = ", ".join(official.possible_stages(num_classes, norm, size))
    return [f"autoattack: {line}; it runs {runs}" for line in official.left_out(num_classes, norm, size)]


def parse_attack(name: str, threat: ThreatModel = LINF_8, values: int | None = None) -> Attack:
    """The attack called ``"clean"``, ``"pgd20"`` or, with another step size than ε/4, ``"pgd20@1/255"``.

    ``values`` is the number of values of an image, ch·H·W, if it is known: it bounds a step in ℓ2.

    Raises:
        LtatError: unknown name, steps missing, out of place or too many, or a step wider than the threat model's box.
    """
    if isinstance(name, str) and name in ATTACKS:
        return ATTACKS[name]
    match = re.fullmatch(r"([a-z]+)([1-9]\d*)(?:@([\d.]+)(?:/(\d+))?)?", str(name), re.ASCII)
    step_size = None if match is None or match[3] is None else _quotient(match[3], match[4] or "1")
    if match is None or match[1] not in PGD_LOSSES or step_size == 0:
        choices = [*ATTACKS, *(f"{prefix}<steps>" for prefix in PGD_LOSSES)]
        raise LtatError(f"unknown attack {shown(name)}; use {', '.join(choices)}, such as pgd20 or pgd20@1/255")
    if float(match[2]) > MAX_STEPS:
        raise LtatError(f"attack {shown(name)} takes more than {MAX_STEPS} steps; lower them")
    if step_size is not None:
        as_step_size(f"the step of {shown(name)}", step_size, threat, values)
    return partial(gradient_attack, name=match[1], steps=int(match[2]), step_size=step_size)


def _quotient(numerator: str, denominator: str) -> float:
    """The step size; 0 if the text is not a number."""
    try:
        return float(numerator) / float(denominator)
    except (ValueError, ZeroDivisionError):
        return 0.0
