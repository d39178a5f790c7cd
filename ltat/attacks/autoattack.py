"""AutoAttack ``standard`` (Croce & Hein 2020) by the authors' package, resumable and with its warnings kept.

The package runs every attack; this file passes it one batch of survivors at a time, the same batches that one call of
the package forms, so that each image has the same verdict. That makes a run resumable: version 0.2.0 refuses the state
file that it wrote, and would return only the images of the last session.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ltat.arguments import as_path, as_whole
from ltat.attacks import official
from ltat.attacks.checks import as_seed, check_batch, check_channels, check_reach, check_threat, trial_logits
from ltat.attacks.clean_images import CleanImages
from ltat.attacks.journal import Damaged, Journal, Piece
from ltat.attacks.modes import attack_mode
from ltat.attacks.threat import LINF_8, ThreatModel
from ltat.engine.network import StepNetwork
from ltat.errors import LtatError
from ltat.joint_work import exchanged, over_ranks
from ltat.ranks import ALONE, Ranks

OnProgress = Callable[[str, int, int], None]
OnFooled = Callable[[Piece], None]

# Square is blind to gradients: where it still wins this share of the images, the others were misled by them.
SQUARE_TOLERANCE = 0.002
UNDEFINED = (
    "logits became NaN or infinite under attack: of class 0 such images count as robust, because the package reads "
    "NaN as class 0, of other classes as fooled"
)


@dataclass(frozen=True)
class Verdicts:
    """Which images AutoAttack fooled.

    Attributes:
        survivors: for ``"clean"`` and then each stage in order, bool [N] on the CPU: still correct.
        flags: what one must know before quoting the number, one sentence each.
        settings: package, version, targets, seed and batch size.
    """

    survivors: dict[str, Tensor]
    flags: tuple[str, ...]
    settings: dict[str, object]

    @property
    def robust(self) -> Tensor:
        """Images that survived every stage, bool [N]."""
        return list(self.survivors.values())[-1]


@dataclass(frozen=True)
class AutoAttackResult(Verdicts):
    """The verdicts with the adversarial images.

    Attributes:
        x_adv: fp32 [N, ch, H, W] on the device of ``x``; the clean image where no stage succeeded.
    """

    x_adv: Tensor


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
    Of images that do not fit into memory as float32, :func:`autoattack_verdicts` gives the verdicts.

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
    _check_threat(threat)
    check_batch(x, y, threat)
    with torch.inference_mode(False):
        x_adv = x.detach().clone()

    def keep(piece: Piece) -> None:
        x_adv[piece.indices.to(x.device)] = piece.x_adv.to(x.device)

    found = autoattack_verdicts(
        model,
        CleanImages.of_tensor(x.detach()),
        y,
        threat=threat,
        batch_size=batch_size,
        seed=seed,
        state_path=state_path,
        precision=precision,
        on_progress=on_progress,
        on_fooled=keep,
    )
    return AutoAttackResult(found.survivors, found.flags, found.settings, x_adv)


def autoattack_verdicts(
    model: nn.Module,
    images: CleanImages,
    y: Tensor,
    *,
    threat: ThreatModel = LINF_8,
    batch_size: int = 256,
    seed: int = 0,
    state_path: str | Path | None = None,
    precision: str = "fp32",
    on_progress: OnProgress | None = None,
    on_fooled: OnFooled | None = None,
    ranks: Ranks = ALONE,
) -> Verdicts:
    """:func:`autoattack` on images that are read a batch at a time, so that its memory is that of a batch.

    Args:
        model: as in :func:`autoattack`, as are all arguments that are not named here.
        images: clean images, in [0, 1].
        y: labels int64 [N] in [0, C).
        on_fooled: called with the adversarial images of every batch of this rank, in order.
        ranks: those that share the batches; all call this function, with the same arguments but for the callbacks, and
            return the same. ``state_path`` is a folder that all of them see, whatever their number.

    Raises:
        LtatError: as :func:`autoattack`.
    """
    _check_threat(threat)
    check_reach(threat, math.prod(images.shape[1:]))
    seed, batch_size = as_seed(seed), as_whole("batch_size", batch_size, 1)
    state_path = None if state_path is None else as_path("state_path", state_path)
    check_channels(model, images.shape[1])
    with attack_mode(model, "eval"), torch.inference_mode(False):
        y = y.detach().cpu().clone()
        body = StepNetwork(model, precision).frozen(images.read(torch.arange(1)))
        run = _Run(body, images, y, threat=threat, batch_size=batch_size, seed=seed, ranks=ranks)
        settings = {**run.settings, "precision": precision}
        named = ranks.leads and state_path is not None  # all images are read for it, so by one rank
        name = _fingerprint(model, images, y, threat, settings, batch_size) if named else ""
        journal = Journal(state_path, exchanged(ranks, name)[0])
        survivors = {"clean": run.clean_correct()}
        alive = survivors["clean"]
        for stage in run.stages:
            alive = survivors[stage] = run.attack(stage, alive, journal, on_progress or _silent, on_fooled)
    flags = [*run.flags(), *_square_flags(survivors)]
    if precision != "fp32":
        flags.append(f"the network ran in {precision}: quote fp32 numbers only")
    return Verdicts(survivors, tuple(flags), run.settings)


class _Run:
    """A running evaluation: the images, the package's object, and the warnings so far."""

    def __init__(
        self,
        model: nn.Module,
        images: CleanImages,
        y: Tensor,
        *,
        threat: ThreatModel,
        batch_size: int,
        seed: int,
        ranks: Ranks,
    ) -> None:
        self.ranks = ranks
        self.model, self.images, self.y, self.threat, self.batch_size = model, images, y, threat, batch_size
        first = images.read(torch.zeros(1, dtype=torch.int64))
        self.device = next(model.parameters(), first).device
        self.messages: list[str] = []
        self.num_classes = self._num_classes(first)
        self.stages = official.possible_stages(self.num_classes, threat.norm, images.shape[2:])
        self.package = official.build(model, threat, self.num_classes, seed, self.device)
        self.settings: dict[str, object] = {
            "package": official.VERSION,
            "version": "standard",
            "targets": official.num_targets(self.num_classes),
            "seed": seed,
            "batch_size": batch_size,
        }

    def _num_classes(self, first: Tensor) -> int:
        num_classes = trial_logits(self.model, first.to(self.device), "the model").shape[1]
        if int(self.y.max()) >= num_classes:
            raise LtatError(
                f"label {int(self.y.max())} does not fit a model of {num_classes} classes; "
                "use the model and the labels of one dataset"
            )
        return num_classes

    def clean_correct(self) -> Tensor:
        """Images classified correctly with finite logits before any attack, bool [N]."""

        @torch.no_grad()
        def classify(_number: int, batch: Tensor) -> Tensor:
            logits = self.model(self.images.read(batch).to(self.device)).cpu()
            return (logits.argmax(1) == self.y[batch]) & logits.isfinite().all(1)

        batches = list(self.images.positions(self.batch_size))
        return torch.cat(over_ranks(self.ranks, "clean", batches, classify, _silent))

    def attack(
        self, stage: str, alive: Tensor, journal: Journal, on_progress: OnProgress, on_fooled: OnFooled | None
    ) -> Tensor:
        """Runs one stage on the images still alive, bool [N]; returns the survivors, bool [N]."""
        left = alive.clone()
        victims = alive.nonzero().squeeze(1)

        def fooled_in(number: int, batch: Tensor) -> tuple[Tensor, tuple[str, ...]]:
            piece, remarks = self._piece(stage, number, batch, journal)
            if on_fooled is not None:
                on_fooled(piece)
            return piece.indices, (*remarks, *piece.messages)

        batches = victims.split(self.batch_size) if len(victims) else ()
        for indices, messages in over_ranks(self.ranks, stage, batches, fooled_in, on_progress):
            left[indices] = False
            self.messages.extend(messages)
        return left

    def _piece(self, stage: str, number: int, batch: Tensor, journal: Journal) -> tuple[Piece, tuple[str, ...]]:
        """The journal's piece if the network confirms it, else a new one, and remarks on the former."""
        name = f"{stage}-{number:05d}"
        remarks: tuple[str, ...] = ()
        try:
            piece = journal.load(name)
            if piece is not None:
                self._confirm(piece, batch)
                return piece, ()
        except Damaged as why:
            remarks = (f"the stored batch {name} could not be trusted ({why}): it was attacked again",)
        piece = self._attack_batch(stage, batch)
        journal.save(name, piece)
        return piece, remarks

    def _confirm(self, piece: Piece, batch: Tensor) -> None:
        """Raises: Damaged unless every image of ``piece`` is a legal adversarial example of its image in ``batch``."""
        indices, x_adv = piece.indices, piece.x_adv
        shapes = indices.shape == x_adv.shape[:1] and x_adv.shape[1:] == self.images.shape[1:]
        known = indices.dtype == torch.int64 and bool(torch.isin(indices, batch).all())
        if not (shapes and known and x_adv.dtype == torch.float32 and len(indices.unique()) == len(indices)):
            raise Damaged("it is not of this batch")
        x, y = self.images.read(batch).cpu(), self.y[batch]
        places = torch.searchsorted(batch, indices)  # of the victims, which stand in order
        if not bool(self.threat.contains(x_adv, x[places]).all()):
            raise Damaged("an image of it breaks the threat model")
        x[places] = x_adv  # a batch of the attack's size, so that its logits are rounded as they were
        with torch.no_grad():
            predicted = self.model(x.to(self.device)).max(1)[1].cpu()
        if bool((predicted == y)[places].any()):
            raise Damaged("an image of it is classified correctly")

    def _attack_batch(self, stage: str, batch: Tensor) -> Piece:
        x, y = self.images.read(batch).to(self.device), self.y[batch].to(self.device)
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
        flags = official.left_out(self.num_classes, self.threat.norm, self.images.shape[2:])
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


def _fingerprint(
    model: nn.Module, images: CleanImages, y: Tensor, threat: ThreatModel, settings: dict[str, object], at_once: int
) -> str:
    """SHA-256 over everything the result depends on; reads ``at_once`` images at a time."""
    head = [settings, threat.norm, threat.eps, _layers(model), list(images.shape)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype}".encode())
        digest.update(_bytes(tensor))
    digest.update(b"images torch.float32")
    for batch in images.positions(at_once):
        digest.update(_bytes(images.read(batch)))
    digest.update(b"labels torch.int64")
    digest.update(_bytes(y))
    return digest.hexdigest()


def _layers(model: nn.Module) -> str:
    """The layers in words; a batch norm of several ranks is, in eval mode, that of one."""
    return re.sub(r"\b(GlobalBatchNorm2d|SyncBatchNorm)\b", "BatchNorm2d", repr(model))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _silent(stage: str, done: int, total: int) -> None:
    pass


def _check_threat(threat: ThreatModel) -> None:
    check_threat(threat)
    if isinstance(threat.eps, Tensor):
        raise LtatError("AutoAttack takes one radius for all images; give eps as a number")
    if threat.box != (0.0, 1.0):
        raise LtatError(f"AutoAttack knows only the box (0, 1), not {threat.box}; scale the images to it")
