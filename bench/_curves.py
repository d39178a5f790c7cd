"""The curves of bench/scaling.py: what is called at which sizes."""

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import torch

from bench._harness import Run
from bench._training import Workload, make_trainer, random_split
from ltat.attacks import ThreatModel, pgd
from ltat.data import Batch, ResidentLoader, Split, longtail_indices
from ltat.data.beton import load_beton, write_beton
from ltat.data.holdout import holdout_indices, stratified_subset
from ltat.data.images import ImageStore
from ltat.data.loaders.ffcv import FfcvLoader
from ltat.data.plans import (
    BalancedPlan,
    ClassSamplingPlan,
    FixedPlan,
    IndexPlan,
    ProgressivePlan,
    ShufflePlan,
    plan_from_file,
)
from ltat.data.split import index_hash
from ltat.engine.network import StepNetwork
from ltat.models import build_model
from ltat.ops import balanced_kd, balanced_kd_twin
from ltat.seeding import numpy_generator

LIMIT = 1.1
IMAGES = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)
CLASSES = (10, 100, 1_000, 4_000, 10_000, 21_841)
PIXELS = (32, 64, 96, 128, 160, 224)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FILES = (1_000, 10_000, 100_000, 1_000_000)
TESTED = (10_000, 30_000, 100_000, 300_000, 1_000_000)
CLASSES_OF_MANY_IMAGES, IMAGES_OF_MANY_CLASSES = 100, 1_000_000
BATCH_OF_THE_LOSS, BATCH_OF_LARGE_IMAGES = 128, 4
REFERENCE = "numpy's permutation alone"
NETWORKS = {"cpu": "small", "cuda": "resnet18"}  # a CPU takes half a minute for a ResNet-18's step at 224 pixels
STEPS = 2  # of the attacks: cost is linear in them by construction


@dataclass(frozen=True)
class Curve:
    """One thing, measured at several sizes.

    Attributes:
        name: what is called.
        axis: what grows: images, classes, pixels (of a side) or batch.
        sizes: at which it is measured.
        quick: the same, for a test.
        build: (size, device) → what is timed; what it makes before counts for nothing.
        on_gpu: whether a GPU has a part in it.
        time_limit, memory_limit: the exponents above which it is a fault.
        part: the curve of the same axis that is part of every call and cannot be changed, if there is one.
    """

    name: str
    axis: str
    sizes: tuple[int, ...]
    quick: tuple[int, ...]
    build: Callable[[int, torch.device], Run]
    on_gpu: bool = False
    time_limit: float = LIMIT
    memory_limit: float = LIMIT
    part: str = ""
    grows: Callable[[int], float] = field(default=float)

    @property
    def case(self) -> str:
        """The name of its rows."""
        return f"{self.name} / {self.axis}"


def many_labels(images: int, classes: int) -> np.ndarray:
    """Long-tailed labels in random order, int64 [images], at least two images of every class."""
    share = np.linspace(1, 0.01, classes)
    labels = np.random.default_rng(0).choice(classes, images, p=share / share.sum())
    labels[np.random.default_rng(1).permutation(images)[: 2 * classes]] = np.repeat(np.arange(classes), 2)
    return labels


def over_images(call: Callable[[np.ndarray, int], object]) -> Callable[[int, torch.device], Run]:
    """Calls with the labels of that many images, and the number of classes."""

    def build(images: int, device: torch.device) -> Run:
        classes = min(CLASSES_OF_MANY_IMAGES, images // 4)
        labels = many_labels(images, classes)
        return lambda: call(labels, classes)

    return build


def over_classes(call: Callable[[np.ndarray, int], object], images: int) -> Callable[[int, torch.device], Run]:
    """The same with that many classes, over ``images`` images."""

    def build(classes: int, device: torch.device) -> Run:
        labels = many_labels(images, classes)
        return lambda: call(labels, classes)

    return build


def drawn(plan: Callable[[np.ndarray, int], IndexPlan]) -> Callable[[np.ndarray, int], object]:
    """A new plan and its first epoch: what a run does at its start, and less in every later epoch."""
    return lambda labels, classes: plan(labels, classes).epoch(1)


def d_b(labels: np.ndarray, classes: int, resample: str = "once") -> IndexPlan:
    return BalancedPlan(labels, classes, "ir/2", db_seed=0, seed=0, resample=resample)


def sampled(labels: np.ndarray, classes: int, power: float = 0.0) -> IndexPlan:
    return ClassSamplingPlan(labels, classes, power, seed=0)


def permutation(labels: np.ndarray, classes: int) -> object:
    return numpy_generator(0, "shuffle", 1).permutation(len(labels))


def fixed_plan(images: int, device: torch.device) -> Run:
    positions = np.arange(images)
    return lambda: FixedPlan(positions).epoch(1)


def plan_file(images: int, device: torch.device) -> Run:
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name) / "plan.npy"
    np.save(path, np.random.default_rng(0).integers(0, images, images))
    return lambda: (folder, plan_from_file(path, images).epoch(1))


def order_of_an_epoch(labels: np.ndarray, classes: int) -> object:
    """What a loader prepares before the first batch: order, augmentation, class counts."""
    split = Split(np.zeros((len(labels), 1, 1, 1), np.uint8), labels, classes, np.arange(len(labels)))
    loader = ResidentLoader(split, ShufflePlan(len(labels), 0), batch_size=128)
    return loader.class_counts(1), loader._order(1, 0).batches()


def loss(function: Callable[..., object]) -> Callable[[int, torch.device], Run]:
    """The forward and backward of a distillation loss over that many classes."""

    def build(classes: int, device: torch.device) -> Run:
        shape = (BATCH_OF_THE_LOSS, classes)
        names = ("student_adv", "student_minus", "teacher_adv", "teacher_minus")
        logits = {name: torch.randn(shape, device=device) for name in names}
        logits |= {name: logits[name].requires_grad_() for name in names[:2]}
        given = {**logits, "target": torch.randint(classes, shape[:1], device=device), "form": "igdm"}
        given["log_prior"] = torch.linspace(8, 4, classes, device=device)
        leaves = [logits[name] for name in names[:2]]
        return lambda: torch.autograd.grad(function(**given).loss, leaves)  # type: ignore[attr-defined]

    return build


def attack(batch: int, side: int, device: torch.device) -> Run:
    layout = torch.channels_last
    model = build_model(NETWORKS[device.type], num_classes=10, in_channels=3).to(device, memory_format=layout).eval()
    x = torch.rand(batch, 3, side, side, device=device).to(memory_format=layout)
    y = torch.randint(10, (batch,), device=device)
    wrapped = StepNetwork(model, "fp32")
    return lambda: pgd(wrapped, x, y, threat=ThreatModel(), steps=STEPS, step_size=2 / 255, validate=False, fold=True)


def step(batch: int, side: int, device: torch.device) -> Run:
    """An AT-BSL step of the trainer: attack and update."""
    settings = (
        f"model.name={NETWORKS[device.type]}",
        f"train.batch_size={batch}",
        f"attack.steps={STEPS}",
        "data.name=cifar10",
    )
    workload = Workload(random_split((max(batch, 8),) * 10, side), settings, device)
    trainer = make_trainer(workload, ("train.precision=fp32", "attack.fold=true", "train.graph=false"))
    trainer.network.train()
    x = torch.rand(batch, 3, side, side, device=device).contiguous(memory_format=torch.channels_last)
    data = Batch(x, torch.arange(batch, device=device) % 10, torch.arange(batch, device=device))
    counts, numbers = trainer.class_counts(1), iter(range(1_000_000))
    return lambda: trainer.train_step(trainer.step(data, 1, next(numbers), counts))


def over_pixels(call: Callable[..., Run]) -> Callable[[int, torch.device], Run]:
    return lambda side, device: call(BATCH_OF_LARGE_IMAGES, side, device)


def over_batches(call: Callable[..., Run]) -> Callable[[int, torch.device], Run]:
    return lambda batch, device: call(batch, 32, device)


def beton(images: int, device: torch.device, opened: bool = False) -> Run:
    """An epoch of FFCV's loader, or opening the files with all checks; 8x8 pixels, in a temporary folder."""
    folder = tempfile.TemporaryDirectory()
    where, names = Path(folder.name), tuple(map(str, range(10)))
    split = SyntheticImages.split(images, 10)
    for part in ("train", "test"):
        chosen = split if part == "train" else split.subset(np.arange(10))
        write_beton(chosen, where / f"{part}.beton", names, name="bench")
    if opened:
        return lambda: (folder, load_beton(where))
    loader = FfcvLoader(load_beton(where).train, ShufflePlan(images, 0), batch_size=256, workers=1, device=device)
    numbers = iter(range(1_000_000))
    return lambda: (folder, exhaust(loader.epoch(next(numbers))))


def exhaust(batches: Iterable[object]) -> None:
    for _ in batches:
        pass


class SyntheticImages(ImageStore):
    """Images that are made when they are read, so that a million of them take no memory."""

    def __init__(self, positions: np.ndarray, side: int = 8) -> None:
        self.positions, self.shape = positions, (len(positions), side, side, 3)

    def read(self, positions: np.ndarray) -> np.ndarray:
        pixels = self.positions[positions][:, None] * 2_654_435_761 + np.arange(np.prod(self.shape[1:])) * 40_503
        return (pixels >> 7).astype(np.uint8).reshape(len(positions), *self.shape[1:])

    def subset(self, positions: np.ndarray) -> "SyntheticImages":
        return SyntheticImages(self.positions[positions], self.shape[1])

    @classmethod
    def split(cls, images: int, classes: int) -> Split:
        places = np.arange(images)
        return Split(cls(places), places % classes, classes, places)


def evaluation(images: int, device: torch.device) -> Run:
    """Clean, PGD and AutoAttack on a linear network; AutoAttack with few steps, on which its memory does not depend."""
    from ltat import evaluate
    from ltat.attacks import official

    split = SyntheticImages.split(images, 4)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4)).to(device)
    original = official.build

    def few_steps(*arguments: object) -> object:
        package = original(*arguments)  # type: ignore[arg-type]
        package.apgd.n_iter = package.apgd_targeted.n_iter = package.fab.n_iter = package.square.n_queries = 2
        return package

    def run() -> object:
        with mock.patch.object(official, "build", few_steps):
            return evaluate(network, split, attacks=["clean", "pgd2", "autoattack"], batch_size=2048, device=device)

    return run


def host_curves(images_of_classes: int) -> list[Curve]:
    """Index lists: nothing of them runs on a GPU."""
    images = partial(Curve, axis="images", sizes=IMAGES, quick=(1_000, 3_000, 10_000), part=REFERENCE)
    classes = partial(Curve, axis="classes", sizes=CLASSES, quick=(10, 100))
    plans: dict[str, Callable[[np.ndarray, int], IndexPlan]] = {
        "shuffle plan": lambda labels, c: ShufflePlan(len(labels), 0),
        "D_B once": d_b,
        "D_B per epoch": partial(d_b, resample="per_epoch"),
        "class-balanced sampling": sampled,
        "square-root sampling": partial(sampled, power=0.5),
        "progressive sampling": lambda labels, c: ProgressivePlan(labels, c, 2, 0),
    }
    lists: dict[str, Callable[[np.ndarray, int], object]] = {
        "long-tailed subset": lambda labels, c: longtail_indices(labels, 10, num_classes=c),
        "held-out images": lambda labels, c: holdout_indices(labels, 0.1, 0, c),
        "evaluation sample": lambda labels, c: stratified_subset(labels, len(labels) // 2, c),
        "order of a loader": order_of_an_epoch,
        "hash of an index list": lambda labels, c: index_hash(labels),
    }
    over_c = ("D_B once", "class-balanced sampling", "progressive sampling")
    return [
        images(REFERENCE, build=over_images(permutation)),
        *(images(name, build=over_images(drawn(plan))) for name, plan in plans.items()),
        images("fixed plan", build=fixed_plan),
        images("plan file", build=plan_file),
        *(images(name, build=over_images(call)) for name, call in lists.items()),
        *(classes(name, build=over_classes(drawn(plans[name]), images_of_classes)) for name in over_c),
        *(classes(name, build=over_classes(lists[name], images_of_classes)) for name in ("held-out images",)),
    ]


def curves(quick: bool = False) -> list[Curve]:
    """All curves; quick ones with fewer images of many classes."""
    batch = partial(Curve, axis="batch", sizes=BATCHES, quick=(1, 2, 4), on_gpu=True)
    pixels = partial(Curve, axis="pixels", sizes=PIXELS, quick=(8, 16), on_gpu=True, grows=lambda side: float(side**2))
    losses = partial(Curve, axis="classes", sizes=CLASSES, quick=(10, 100), on_gpu=True)
    files = partial(Curve, axis="images", sizes=FILES, quick=())
    found = [
        *host_curves(10_000 if quick else IMAGES_OF_MANY_CLASSES),
        losses("balanced_kd", build=loss(balanced_kd)),
        losses("balanced_kd, its twin", build=loss(balanced_kd_twin)),
        *(pixels(name, build=over_pixels(call)) for name, call in (("attack", attack), ("step", step))),
        *(batch(name, build=over_batches(call)) for name, call in (("attack", attack), ("step", step))),
        Curve("evaluation", "images", TESTED, (64, 256), evaluation, on_gpu=True, memory_limit=0.5),
    ]
    if find_spec("ffcv") is not None:
        found += [files(".beton opened", build=partial(beton, opened=True)), files(".beton read", build=beton)]
    return found
