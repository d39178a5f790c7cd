"""What each rank holds to, one small fact after the other: each rank writes the facts that fail as a file.

python -m torch.distributed.run --standalone --nproc-per-node=2 -m tests.ranks.contract FOLDER
"""

import copy
import json
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from ltat.data import Augment, Batch, FixedPlan, Loader, Split, make_loader
from ltat.engine.captured_update import ANOTHER_GAVE_UP, CapturedUpdate
from ltat.engine.global_norm import with_global_norms
from ltat.engine.gradients import MeanGradients, average_statistics
from ltat.errors import LtatError
from ltat.ranks import Ranks, ranks_of_torchrun
from ltat.training.averaging import build_average
from ltat.training.preparing import prepare
from tests.attacks.recording import UpdateRecorder
from tests.data.betons import noise, opened, stored
from tests.training.tiny import complete_config, tiny_config

FACTS: dict[str, Callable[[Ranks], None]] = {}


def fact(check: Callable[[Ranks], None]) -> Callable[[Ranks], None]:
    """Add a check that every rank runs."""
    FACTS[check.__name__] = check
    return check


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64, the same on every rank."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor | None, wanted: Tensor | None, within: float = 1e-12) -> None:
    assert found is not None and wanted is not None and found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=within, atol=within)


def refused(act: Callable[[], object], *words: str) -> None:
    """Require one sentence with the words."""
    try:
        act()
    except LtatError as error:
        assert all(word in str(error) for word in words), error
    else:
        raise AssertionError("it is not refused")


@fact
def any_rank_is_heard(ranks: Ranks) -> None:
    assert ranks.any_(ranks.rank == ranks.size - 1, False, True) == (True, False, True)
    assert ranks.told(ranks.rank) == 0


@fact
def a_joined_loss_has_the_gradient_of_the_whole_batch(ranks: Ranks) -> None:
    total, blocks = 7, 3  # unequal shares; clean and adversarial images through one forward
    x, y = drawn(blocks, total, 4), drawn(blocks * total, 2, seed=1)
    share = ranks.share(total)
    weight = drawn(4, 2, seed=2).requires_grad_()
    whole = weight.detach().clone().requires_grad_()

    def loss(rows: Tensor) -> Tensor:
        return (rows.softmax(0) * y).sum() + rows.square().mean()  # rows of one rank in terms of another's

    own = x[:, share.rows].flatten(0, 1) @ weight
    joined = ranks.joined(own, share)
    assert torch.equal(joined, x.flatten(0, 1) @ whole.detach())
    loss(joined).backward()
    loss(x.flatten(0, 1) @ whole).backward()
    assert weight.grad is not None
    ranks.mean_([weight.grad])
    close(weight.grad, whole.grad)


@fact
def a_second_derivative_is_refused(ranks: Ranks) -> None:
    x = drawn(2 * ranks.size, 3)[ranks.share(2 * ranks.size).rows].requires_grad_()
    loss = ranks.joined(x.square(), ranks.share(2 * ranks.size)).square().sum()
    (gradient,) = torch.autograd.grad(loss, x, create_graph=True)
    try:
        gradient.sum().backward()
    except RuntimeError as error:
        assert "once_differentiable" in str(error)
    else:
        raise AssertionError("it is computed from one share")


NORMS = {
    "default": {},
    "momentum none": {"momentum": None},
    "no running statistics": {"track_running_stats": False},
    "not affine": {"affine": False},
}


def norms_agree(ranks: Ranks, settings: dict, dtype: torch.dtype = torch.float64, within: float = 1e-12) -> None:
    """Two steps of a global norm and of torch's on the whole batch: outputs, gradients and statistics."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    whole = nn.Sequential(nn.BatchNorm2d(3, **settings)).to(wide)
    for parameter, value in zip(whole.parameters(), drawn(2, 3, seed=5).to(wide), strict=False):
        parameter.data.copy_(value)
    own = with_global_norms(copy.deepcopy(whole), ranks)
    gradients = MeanGradients(own, ranks)
    total = 4 * ranks.size + 1
    rows = ranks.share(total).rows
    for step in range(2):
        x = (3 * drawn(total, 3, 5, 4, seed=step) + 2).to(dtype).contiguous(memory_format=torch.channels_last)
        wanted_x, found_x = x.clone().requires_grad_(), x[rows].clone().requires_grad_()
        dy = drawn(total, 3, 5, 4, seed=9).to(dtype)
        wanted, found = whole(wanted_x), own(found_x)
        close(found, wanted[rows], within)
        (wanted * dy).sum().backward()
        (found * dy[rows]).sum().mul(ranks.size).backward()  # as a joined loss does
        gradients.wait()
        close(found_x.grad, ranks.size * wanted_x.grad[rows], 10 * within)
    for found, wanted in zip(own.parameters(), whole.parameters(), strict=True):
        close(found.grad, wanted.grad, 100 * within)
    for name, wanted in whole.state_dict().items():
        close(own.state_dict()[name], wanted, within)
    own.eval(), whole.eval()
    if settings.get("track_running_stats", True):
        close(own(x[rows]), whole(x)[rows], within)


@fact
def a_global_norm_is_batch_norm_on_the_whole_batch(ranks: Ranks) -> None:
    for settings in NORMS.values():
        norms_agree(ranks, settings)


@fact
def a_global_norm_takes_half_precision(ranks: Ranks) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        norms_agree(ranks, {}, dtype, 0.02)


@fact
def another_batch_norm_is_refused(ranks: Ranks) -> None:
    refused(lambda: with_global_norms(nn.Sequential(nn.BatchNorm1d(3)), ranks), "BatchNorm1d '0'", "sync_bn=false")


class Trunk(nn.Module):
    """A network that leaves a weight out, and has a frozen one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
        self.frozen = nn.Linear(4, 3).double().requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.frozen(x)


@fact
def gradients_are_those_of_the_whole_batch(ranks: Ranks) -> None:
    torch.manual_seed(0)
    own = Trunk()
    whole = copy.deepcopy(own)
    gradients = MeanGradients(own, ranks, bucket_bytes=64)
    assert len(gradients.buckets) > 3
    share = ranks.share(7)
    for step in range(3):
        if step == 2:
            own.frozen.requires_grad_(True)
            whole.frozen.requires_grad_(True)
        x = drawn(7, 4, seed=step)
        own.zero_grad(set_to_none=True)
        whole.zero_grad(set_to_none=True)
        ranks.joined(own(x[share.rows]), share).softmax(0).square().sum().backward()
        gradients.wait()
        whole(x).softmax(0).square().sum().backward()
        assert own.unused.grad is None
        for found, wanted in zip(own.parameters(), whole.parameters(), strict=True):
            if wanted.grad is not None:
                close(found.grad, wanted.grad)


@fact
def an_infinity_on_one_rank_skips_the_step_on_all(ranks: Ranks) -> None:
    weight = nn.Linear(2, 1, bias=False)
    nn.init.ones_(weight.weight)
    optimizer = torch.optim.SGD(weight.parameters(), lr=1.0)
    scaler, gradients = torch.amp.GradScaler("cpu"), MeanGradients(weight, ranks)
    for step in range(2):
        optimizer.zero_grad()
        wild = torch.inf if step == 0 and ranks.rank == ranks.size - 1 else 1.0
        scaler.scale((weight(torch.ones(1, 2)) * wild).sum()).backward()
        gradients.wait()
        scaler.step(optimizer)
        scaler.update()
        assert weight.weight.eq(1.0).all() == (step == 0)
    assert scaler.get_scale() == 32768.0 and weight.weight.eq(0.0).all()


@fact
def statistics_of_shares_are_averaged_and_nothing_else(ranks: Ranks) -> None:
    model = nn.Sequential(nn.BatchNorm2d(2))
    model.register_buffer("mean", torch.tensor(0.4914))
    model[0].running_mean.fill_(ranks.rank)
    kept = model.mean.clone()
    for _ in range(50):
        average_statistics(model, ranks)
    assert torch.equal(model.mean, kept)
    close(model[0].running_mean, torch.full((2,), (ranks.size - 1) / 2), 1e-6)


@fact
def recomputed_statistics_are_the_same_on_all_ranks(ranks: Ranks) -> None:
    config = complete_config(
        *("method=pgd-at", "average.kind=swa", "average.bn=recompute", "average.start=1", "train.sync_bn=false")
    )
    run = prepare(tiny_config("method=pgd-at", "train.sync_bn=false"), ranks=ranks)
    average = build_average(replace(run.student, config=config))
    average.end_epoch(3, run.student.loader)
    buffers = dict(average.network.named_buffers())
    mean = next(value for name, value in buffers.items() if name.endswith("running_mean"))
    told = ranks.told(mean.tolist())
    assert mean.tolist() == told and any(told)


SIZE, BATCH = 23, 5


def sets(ranks: Ranks) -> dict[str, Split]:
    """The set for every loader that is installed; FFCV compiles for seconds, so that two ranks do for it."""
    split, file = noise(n=SIZE), Path(sys.argv[1]) / "train.beton"
    found = {"resident": split, "torch": split}
    if find_spec("ffcv") is None or ranks.size > 2:
        return found
    if ranks.leads:
        stored(split, file)
    ranks.meet()
    return found | {"ffcv": opened(file)}


def loader_of(kind: str, split: Split, size: int = BATCH, **settings: object) -> Loader:
    plan = FixedPlan(np.random.default_rng(1).permutation(SIZE))
    workers = 1 if kind == "ffcv" else 0
    augment = Augment(pad=2, flip=True)
    return make_loader(split, plan, kind=kind, batch_size=size, augment=augment, workers=workers, **settings)


@fact
def shares_of_a_batch_cover_it(ranks: Ranks) -> None:
    for kind, split in sets(ranks).items():
        for start, drop_last in ((2 * BATCH, False), (0, True), (0, False))[: 1 if kind == "ffcv" else 3]:
            whole = list(loader_of("resident", noise(n=SIZE), drop_last=drop_last).epoch(4, start))
            shares = list(loader_of(kind, split, drop_last=drop_last, ranks=ranks).epoch(4, start))
            assert len(whole) == len(shares) == (SIZE - start) // BATCH + (not drop_last), kind
            for batch, own in zip(whole, shares, strict=True):
                covered(batch, own, ranks)


def covered(batch: Batch, own: Batch, ranks: Ranks) -> None:
    """Require that the shares have each image of the batch once, with the same pixels, and that all know its labels."""
    assert own.shared is not None
    share = own.shared.share
    assert len(own.images) == len(own.labels) == len(share) > 0 and share == ranks.share(len(batch.labels))
    assert torch.equal(own.shared.labels, batch.labels) and torch.equal(own.all_labels, batch.labels)
    assert torch.equal(own.shared.indices, batch.indices)
    assert torch.equal(own.labels, batch.labels[share.rows]) and torch.equal(own.indices, batch.indices[share.rows])
    assert torch.equal(own.images, batch.images[share.rows])
    seen = torch.zeros(len(batch.labels))
    seen[share.rows] = 1
    ranks.sum_([seen])
    assert seen.eq(1).all()


@fact
def a_batch_smaller_than_the_ranks_is_refused(ranks: Ranks) -> None:
    split = noise(n=SIZE)
    refused(lambda: loader_of("resident", split, SIZE - 1, ranks=ranks), "a batch of 1", "drop_last=true")
    loader_of("resident", split, SIZE - 1, ranks=ranks, drop_last=True)


@fact
def a_setting_that_does_not_suit_ranks_is_refused(ranks: Ranks) -> None:
    for settings, words in (
        (("train.compile=true",), ("train.compile=true", f"there are {ranks.size}")),
        (("train.batch_size=1",), ("a batch of 1",)),
    ):
        refused(lambda settings=settings: prepare(tiny_config("method=at-bsl", *settings), ranks=ranks), *words)


FORGETFUL = """
import torch
import torch.nn.functional as F
from ltat.config import RunConfig
from ltat.methods import LossTerms, Method

class Forgetful(Method):
    Config = RunConfig
    def loss(self, step):
        logits = step.model(step.x_adv)
        other = step.x_adv.flatten(1)[:, : logits.shape[1]]
        {remember}
        loss = F.cross_entropy(logits, step.batch.labels) + {term}
        return LossTerms(loss, logits, {{}})
"""


@fact
def a_loss_of_a_share_is_refused(ranks: Ranks) -> None:
    for term in ("(logits - other).square().mean()", "other.mean()"):
        for remember in ("", "other = step.whole(other)"):
            with tempfile.TemporaryDirectory() as where:
                file = Path(where) / "forgetful.py"
                file.write_text(FORGETFUL.format(term=term, remember=remember))
                settings = tiny_config(f"method={file}:Forgetful")
                if remember:
                    prepare(settings, ranks=ranks)
                else:
                    refused(lambda settings=settings: prepare(settings, ranks=ranks), "step.whole(...)")


@fact
def an_update_that_one_rank_cannot_capture_none_replays(ranks: Ranks) -> None:
    for changes, records in ((True, True), (False, False)):
        last = ranks.rank == ranks.size - 1
        recorder = UpdateRecorder()
        if last and not records:
            recorder.record = cannot_record
        method = SimpleNamespace(count=0)
        runner = CapturedUpdate(recorder, method, lambda: (), ranks=ranks)
        for step in range(12):
            if last and changes and step > 6:
                method.count = step
            runner.run(torch.square, (torch.ones(2),))
        assert runner.why_not is not None and (last or runner.why_not == ANOTHER_GAVE_UP)


def cannot_record(function: Callable[[], object]) -> None:
    raise LtatError("a graph cannot hold it; leave it out")


def main() -> None:
    failed = {}
    with ranks_of_torchrun() as ranks:
        for name, check in FACTS.items():
            try:
                check(ranks)
            except Exception:
                failed[name] = traceback.format_exc()
            Path(sys.argv[1], f"{ranks.rank}.json").write_text(json.dumps(failed))
            ranks.meet()


if __name__ == "__main__":
    main()
