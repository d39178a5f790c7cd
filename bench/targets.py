"""The targets of the benches; `python -m bench.report` shows by how much each is met or missed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.rows import Row

Rows = Mapping[str, Row]  # the rows of one case, by candidate


@dataclass(frozen=True)
class Target:
    """A limit on a number that is computed from the rows of one case.

    Attributes:
        what: description for readers.
        bench, case: the file and the case of the rows.
        on_gpu: whether the limit is for a GPU.
        needs: the candidates that the number needs.
        value: computes the number.
        limit: the least value, or with ``at_most`` the largest.
        unit: of the number.
        threads: the number of CPU threads that the limit is for, if it matters.
        headline: whether the README shows it.
    """

    what: str
    bench: str
    case: str
    needs: tuple[str, ...]
    value: Callable[[Rows], float]
    limit: float
    unit: str = "×"
    at_most: bool = False
    on_gpu: bool = False
    threads: int | None = None
    headline: bool = False

    def met(self, rows: Rows) -> bool:
        """Whether the rows reach the limit."""
        found = self.value(rows)
        return found <= self.limit if self.at_most else found >= self.limit


def ratio(ours: str, theirs: str) -> dict[str, object]:
    """How many times quicker ``ours`` is than ``theirs``."""
    return {"needs": (ours, theirs), "value": lambda rows: rows[theirs].median / rows[ours].median}


def bandwidth(ours: str, *floors: str) -> dict[str, object]:
    """Share in percent of the best bandwidth that ``floors`` measure."""

    def value(rows: Rows) -> float:
        return 100 * gb_per_s(rows[ours]) / max(gb_per_s(rows[floor]) for floor in floors)

    return {"needs": (ours, *floors), "value": value, "unit": " %", "limit": 90}


def seconds(candidate: str, limit: float) -> dict[str, object]:
    """The seconds of a call."""
    limits = {"limit": limit, "at_most": True, "unit": " s"}
    return {"needs": (candidate,), "value": lambda rows: rows[candidate].median / 1e6, **limits}


def above(candidate: str, base: str, limit: float) -> dict[str, object]:
    """The seconds that ``candidate`` takes above ``base``."""
    limits = {"limit": limit, "at_most": True, "unit": " s"}
    return {
        "needs": (candidate, base),
        "value": lambda rows: (rows[candidate].median - rows[base].median) / 1e6,
        **limits,
    }


def share(ours: str, theirs: str) -> dict[str, object]:
    """``ours`` in percent of ``theirs``, to be no more than that."""
    value = {"value": lambda rows: 100 * rows[ours].median / rows[theirs].median}
    return {"needs": (ours, theirs), **value, "limit": 100, "at_most": True, "unit": " %"}


def gb_per_s(row: Row) -> float:
    """Bandwidth of a timed row that records its bytes."""
    assert row.bytes is not None
    return row.bytes / row.median / 1e3


STEP = "128x3x32x32 linf float32 in place"
GATHER = "128x32x32x3 of 10000 pad 4 flip"
RELU = "128x64x32x32 bfloat16 channels_last"
OURS, ON_GPU = "ltat bf16", "ltat bf16 graph"  # on a GPU the eager one waits for its launches

TARGETS = (
    *(
        Target(
            f"attack step in {precision}, share of the rate of its bare convolutions",
            "attack_step",
            f"resnet18 64x3x32x32 {precision}",
            needs=("fused", "convolutions"),
            value=lambda rows: 100 * rows["convolutions"].median / rows["fused"].median,
            limit=97,
            unit=" %",
            headline=True,
        )
        for precision in ("fp32", "bf16")
    ),
    Target(
        "AT-BSL step, ResNet-18, batch 64, beside plain fp32",
        "train_step",
        "resnet18 64x3x32x32 10 steps",
        limit=2.5,
        headline=True,
        **ratio(OURS, "plain"),
    ),
    Target(
        "its peak memory, in percent of the plain loop's",
        "train_step",
        "resnet18 64x3x32x32 peak memory",
        **share(OURS, "plain"),
    ),
    Target(
        "the demo's AT-BSL epoch beside the plain loop",
        "end_to_end",
        "digits, small, an epoch",
        limit=2,
        headline=True,
        **ratio("ltat demo", "plain"),
    ),
    Target("`pgd_step` beside eager", "pgd_step", STEP, limit=4, threads=1, headline=True, **ratio("native", "eager")),
    Target("`pgd_step` beside torch.compile", "pgd_step", STEP, limit=2, threads=1, **ratio("native", "compile")),
    Target(
        "`pgd_step`, share of the measured bandwidth",
        "pgd_step",
        STEP,
        threads=1,
        **bandwidth("native", "copy", "stream"),
    ),
    *(
        Target(
            f"`balanced_kd` ({form}) {shape} beside {beside}",
            "balanced_kd",
            f"{shape} {form} float32 fwd+bwd",
            limit=limit,
            threads=1,
            **ratio("native", baseline),
        )
        for shape in ("128x10", "128x100", "256x1000")
        for form in ("igdm", "kl_adv")
        for baseline, beside, limit in (("eager", "eager", 2), ("compile", "torch.compile", 1.2))
    ),
    Target(
        "`gather_augment` beside a vectorised gather",
        "gather_augment",
        GATHER,
        limit=1.5,
        threads=2,
        **ratio("native", "gather"),
    ),
    Target(
        "`gather_augment` beside torchvision v2 in a DataLoader",
        "gather_augment",
        "16 batches of 128x32x32x3",
        limit=10,
        threads=2,
        headline=True,
        **ratio("native", "dataloader-v2"),
    ),
    *(
        Target(f"`{op}` beside eager", op, RELU, limit=1.5, threads=1, **ratio("native", "eager"))
        for op in ("relu_grad_add", "affine_relu")
    ),
    Target(
        "`import ltat` above `import torch`", "startup", "fresh process", **above("import ltat", "import torch", 0.3)
    ),
    Target("`ltat --help`", "startup", "fresh process", **seconds("ltat --help", 0.3)),
    Target(
        "the main method as published on CIFAR-10-LT, ResNet-18, bf16, train.graph=true: training of both stages",
        "end_to_end",
        "CIFAR-10-LT, resnet18, 30 + 100 epochs of self-distill",
        on_gpu=True,
        headline=True,
        **seconds(ON_GPU, 240),
    ),
    Target(
        "student epoch of self-distill, CIFAR-10-LT, ResNet-18, PGD-10, batch 128, bf16, train.graph=true",
        "end_to_end",
        "CIFAR-10-LT, resnet18, an epoch of self-distill",
        on_gpu=True,
        headline=True,
        **seconds(ON_GPU, 2.0),
    ),
    Target(
        "AT-BSL epoch, CIFAR-10-LT, ResNet-18, PGD-10, batch 128, bf16, train.graph=true",
        "end_to_end",
        "CIFAR-10-LT, resnet18, an epoch",
        on_gpu=True,
        headline=True,
        **seconds(ON_GPU, 1.5),
    ),
    Target(
        "the same epoch beside the plain loop",
        "end_to_end",
        "CIFAR-10-LT, resnet18, an epoch",
        limit=5,
        on_gpu=True,
        headline=True,
        **ratio(ON_GPU, "plain"),
    ),
    Target(
        "step at the teacher's batch of 32 (bf16, train.graph=true) beside the plain loop",
        "train_step",
        "resnet18 32x3x32x32 10 steps",
        limit=3.5,
        on_gpu=True,
        **ratio(ON_GPU, "plain"),
    ),
    Target(
        "peak memory of the step at batch 128 (bf16, train.graph=true), in percent of the plain loop's",
        "train_step",
        "resnet18 128x3x32x32 peak memory",
        on_gpu=True,
        **share(ON_GPU, "plain"),
    ),
    Target("`pgd_step` beside eager", "pgd_step", STEP, limit=6, on_gpu=True, **ratio("native", "eager")),
    Target(
        "`pgd_step` on 616 MB, share of the copy's bandwidth",
        "pgd_step",
        "256x3x224x224 linf float32 in place",
        on_gpu=True,
        **bandwidth("native", "copy"),
    ),
    *(
        target
        for op in ("relu_grad_add", "affine_relu")
        for target in (
            Target(f"`{op}` beside eager", op, RELU, limit=1.8, on_gpu=True, **ratio("native", "eager")),
            Target(f"`{op}`, share of the copy's bandwidth", op, RELU, on_gpu=True, **bandwidth("native", "copy")),
        )
    ),
    *(
        Target(
            f"`balanced_kd` (igdm) {shape} beside eager",
            "balanced_kd",
            f"{shape} igdm float32 fwd+bwd",
            limit=8,
            on_gpu=True,
            **ratio("native", "eager"),
        )
        for shape in ("128x10", "128x100")
    ),
)
