"""AutoAttack ``standard`` (Croce & Hein 2020) by the authors' package, resumable and with its warnings kept.

The package runs every attack; this file passes it one batch of survivors at a time, the same batches that one call of
the package forms, so that each image has the same verdict. That makes a run resumable: version 0.2.0 refuses the state
file that it wrote, and would return only the images of the last session.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltat.arguments import as_path, as_whole
from ltat.attacks import official
from ltat.attacks.checks import as_seed, check_batch, check_channels, check_threat, trial_logits
from ltat.attacks.journal import Damaged, Journal, Piece
from ltat.attacks.modes import attack_mode
from ltat.attacks.threat import LINF_8, ThreatModel
from ltat.engine.network import StepNetwork
from ltat.errors import LtatError

OnProgress = Callable[[str, int, int], None]

# Square is blind to gradients: where it still wins this share of the images, the others were misled by them.
SQUARE_TOLERANCE = 0.002
UNDEFINED = (
    "logits became NaN or infinite under attack: of class 0 such images count as robust, because the package reads "
    "NaN as class 0, of other classes as fooled"
)


@dataclass(frozen=True)
class AutoAttackResult:
    """What AutoAttack found.

    Attributes:
        x_adv: fp32 [N, ch, H, W] on the device of ``x``; the clean image where no stage succeeded.
        survivors: for ``"clean"`` and then each stage in order, bool [N] on the CPU: still correct.
        flags: what one must know before quoting the number, one sentence each.
        settings: package, version, targets, seed and batch size.
    """

    x_adv: Tensor
    survivors: dict[str, Tensor]
    flags: tuple[str, ...]
    settings: dict[str, object]

    @property
    def robust(self) -> Tensor:
        """Images that survived every stage, bool [N]."""
        return list(self.survivors.values())[-1]


def autoattack(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    threat: ThreatModel = LINF_8,
    batch_size: int = 256,
    seed: int = 0,
    state_path: str | Path | None = None,
    precision: str = "fp32",
    on_progress: OnProgress | None = None,
) -> AutoAttackResult:
    """Worst case per image over APGD-CE, APGD-T, FAB-T and Square, each on the survivors of those before.

    Deterministic in ``seed``: neither reads nor changes the global random state. Restores the model.
    With fewer than 10 classes the targeted attacks visit all C − 1 targets; APGD-T, whose loss needs four
    classes, is left out below that, and flagged. So is Square in ℓ2 where the package cannot tile the images.

    Args:
        model: images [B, ch, H, W] → logits [B, C]; attacked in eval mode on the device of its parameters.
        x: clean images fp32 [N, ch, H, W] in [0, 1], on any device.
        y: labels int64 [N] in [0, C).
        threat: ℓ∞ or ℓ2 with one ε for all images; the box must be [0, 1].
        batch_size: images attacked at once. It changes the random starts, as it does in the package.
        seed: of every random start.
        state_path: a folder that keeps each finished batch; a later call with the same arguments continues
            from there and returns the same result.
        precision: of the network body; anything but fp32 is flagged.
        on_progress: called as (stage, images done, images of this stage).

    Raises:
        LtatError: a threat model AutoAttack does not know, wrong images or labels, the state of another run.
    """
    _check(x, y, threat)
    seed, batch_size = as_seed(seed), as_whole("batch_size", batch_size, 1)
    state_path = None if state_path is None else as_path("state_path", state_path)
    check_channels(model, x.shape[1])
    with attack_mode(model, "eval"), torch.inference_mode(False):
        x, y = x.detach().clone(), y.detach().clone()
        body = StepNetwork(model, precision).frozen()
        run = _Run(body, x, y, threat=threat, batch_size=batch_size, seed=seed)
        journal = Journal(
            state_path, _fingerprint(model, x, y, threat, settings={**run.settings, "precision": precision})
        )
        survivors = {"clean": run.clean_correct()}
        alive = survivors["clean"]
        for stage in run.stages:
            alive = survivors[stage] = run.attack(stage, alive, journal, on_progress)
    flags = [*run.flags(), *_square_flags(survivors)]
    if precision != "fp32":
        flags.append(f"the network ran in {precision}: quote fp32 numbers only")
    return AutoAttackResult(run.x_adv, survivors, tuple(flags), run.settings)


class _Run:
    """A running evaluation: the images, the package's object, and the results so far."""

    def __init__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, threat: ThreatModel, batch_size: int, seed: int
    ) -> None:
        self.model, self.x, self.y, self.threat, self.batch_size = model, x, y, threat, batch_size
        self.device = next(model.parameters(), x).device
        self.x_adv = x.clone()
        self.messages: list[str] = []
        self.num_classes = self._num_classes()
        self.stages = official.possible_stages(self.num_classes, threat.norm, tuple(x.shape[2:]))
        self.package = official.build(model, threat, self.num_classes, seed, self.device)
        self.settings: dict[str, object] = {
            "package": official.VERSION,
            "version": "standard",
            "targets": official.num_targets(self.num_classes),
            "seed": seed,
            "batch_size": batch_size,
        }

    def _num_classes(self) -> int:
        num_classes = trial_logits(self.model, self.x[:1].to(self.device), "the model").shape[1]
        if int(self.y.max()) >= num_classes:
            raise LtatError(
                f"label {int(self.y.max())} does not fit a model of {num_classes} classes; "
                "use the model and the labels of one dataset"
            )
        return num_classes

    def clean_correct(self) -> Tensor:
        """Images classified correctly with finite logits before any attack, bool [N]."""
        correct = []
        with torch.no_grad():
            for x, y in zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True):
                logits = self.model(x.to(self.device)).cpu()
                correct.append((logits.argmax(1) == y.cpu()) & logits.isfinite().all(1))
        return torch.cat(correct)

    def attack(self, stage: str, alive: Tensor, journal: Journal, on_progress: OnProgress | None) -> Tensor:
        """Runs one stage on the images still alive, bool [N]; returns the survivors, bool [N]."""
        left = alive.clone()
        victims = alive.nonzero().squeeze(1)
        for number, start in enumerate(range(0, len(victims), self.batch_size)):
            batch = victims[start : start + self.batch_size]
            name = f"{stage}-{number:05d}"
            piece = self._stored(name, batch, journal)
            if piece is None:
                piece = self._attack_batch(stage, batch)
                journal.save(name, piece)
            left[piece.indices] = False
            self.x_adv[piece.indices.to(self.x.device)] = piece.x_adv.to(self.x.device)
            self.messages.extend(piece.messages)
            if on_progress is not None:
                on_progress(stage, start + len(batch), len(victims))
        return left

    def _stored(self, name: str, batch: Tensor, journal: Journal) -> Piece | None:
        """The journal's piece of that name if the network confirms it, else None, for the batch to be attacked."""
        try:
            piece = journal.load(name)
            if piece is not None:
                self._confirm(piece, batch)
            return piece
        except Damaged as why:
            self.messages.append(f"the stored batch {name} could not be trusted ({why}): it was attacked again")
            return None

    def _confirm(self, piece: Piece, batch: Tensor) -> None:
        """Raises: Damaged unless every image of ``piece`` is a legal adversarial example of its image in ``batch``."""
        indices, x_adv = piece.indices, piece.x_adv
        shapes = indices.shape == x_adv.shape[:1] and x_adv.shape[1:] == self.x.shape[1:]
        known = indices.dtype == torch.int64 and bool(torch.isin(indices, batch).all())
        if not (shapes and known and x_adv.dtype == torch.float32 and len(indices.unique()) == len(indices)):
            raise Damaged("it is not of this batch")
        x, y = (t[batch.to(t.device)].cpu() for t in (self.x, self.y))
        places = torch.searchsorted(batch, indices)  # of the victims, which stand in order
        if not bool(self.threat.contains(x_adv, x[places]).all()):
            raise Damaged("an image of it breaks the threat model")
        x[places] = x_adv  # a batch of the attack's size, so that its logits are rounded as they were
        with torch.no_grad():
            predicted = self.model(x.to(self.device)).max(1)[1].cpu()
        if bool((predicted == y)[places].any()):
            raise Damaged("an image of it is classified correctly")

    def _attack_batch(self, stage: str, batch: Tensor) -> Piece:
        x, y = (t[batch.to(t.device)].to(self.device) for t in (self.x, self.y))
        with _counting_undefined(self.model) as undefined:
            x_adv, fooled, warnings = official.run_stage(self.package, stage, x, y)
        if any(map(int, undefined)):
            warnings.append(UNDEFINED)
        # A NaN gradient makes a NaN image, which is neither an adversarial example nor evidence of robustness.
        broken = ~x_adv.isfinite().flatten(1).all(1)
        x_adv = torch.where(broken.reshape(-1, *[1] * (x.dim() - 1)), x, x_adv)
        legal = self.threat.contains(x_adv, x)
        illegal = int((fooled & ~legal).sum())
        if illegal:
            warnings.append(f"{illegal} adversarial images broke the threat model and were not counted")
        fooled = (fooled & legal).cpu()
        return Piece(batch[fooled], x_adv.cpu()[fooled], tuple(warnings))

    def flags(self) -> list[str]:
        """Stages left out, and the warnings of all batches, alike ones gathered into one."""
        flags = official.left_out(self.num_classes, self.threat.norm, tuple(self.x.shape[2:]))
        return flags + _gather(self.messages)


@contextmanager
def _counting_undefined(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list of one 0-dim tensor, how many images inside had logits that are not finite; empty without a forward."""
    counts: list[Tensor] = []

    def count(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
        counts.append((~logits.detach().isfinite().all(1)).sum())  # not read here, which would stall the device
        counts[:] = [torch.stack(counts).sum()]

    handle = model.register_forward_hook(count)
    try:
        yield counts
    finally:
        handle.remove()


def _gather(messages: list[str]) -> list[str]:
    """Messages that differ only in their numbers, as one: the first, and how often it came."""
    groups: dict[str, list[str]] = {}
    for message in messages:
        groups.setdefault(re.sub(r"\d+", "#", message), []).append(message)
    return [same[0] if len(same) == 1 else f"{same[0]} ({len(same)} batches)" for same in groups.values()]


def _square_flags(survivors: dict[str, Tensor]) -> list[str]:
    # The package makes this check over a whole run, and here it never sees one.
    if "square" not in survivors:
        return []
    before = torch.stack([alive for stage, alive in survivors.items() if stage != "square"]).all(0)
    won = float(before.float().mean() - survivors["square"].float().mean())
    if won <= SQUARE_TOLERANCE:
        return []
    return [
        f"square fooled {won:.2%} more after the gradient attacks: gradients may be masked, "
        "try more iterations or an adaptive attack"
    ]


def _fingerprint(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel, *, settings: dict[str, object]) -> str:
    """SHA-256 over everything the result depends on."""
    head = [settings, threat.norm, threat.eps, repr(model), list(x.shape)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, tensor in [*sorted(model.state_dict().items()), ("images", x), ("labels", y)]:
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _check(x: Tensor, y: Tensor, threat: ThreatModel) -> None:
    check_threat(threat)
    if isinstance(threat.eps, Tensor):
        raise LtatError("AutoAttack takes one radius for all images; give eps as a number")
    if threat.box != (0.0, 1.0):
        raise LtatError(f"AutoAttack knows only the box (0, 1), not {threat.box}; scale the images to it")
    check_batch(x, y, threat)
