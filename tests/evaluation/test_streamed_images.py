"""Evaluating sets larger than memory: only a few batches are float32 at once, and no verdict depends on it."""

import gc
import hashlib
import json

import numpy as np
import pytest
import safetensors
import torch
from torch import nn

from ltat import evaluate
from ltat.attacks import ThreatModel, official
from ltat.attacks.autoattack import autoattack
from ltat.data import Split
from ltat.data.images import ImageStore, as_floats

IMAGES, BATCH, CLASSES = 45, 4, 5
THREAT = ThreatModel(eps=0.02)
BUILD = official.build


class RecordedImages(ImageStore):
    """Images that note how many are asked for, and how many other images are float32 at that time."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.shape = images, images.shape
        self.asked: list[int] = []
        self.floats: list[int] = []

    def read(self, positions: np.ndarray) -> np.ndarray:
        self.asked.append(len(positions))
        self.floats.append(floats_alive(self.shape))
        return self.images[positions]

    def subset(self, positions: np.ndarray) -> "RecordedImages":
        raise AssertionError("the evaluation copied a part of the images")


def floats_alive(shape: tuple[int, ...]) -> int:
    """Images of this shape in all living tensors of floats."""
    height, width, channels = shape[1:]
    return sum(
        len(thing)
        for thing in gc.get_objects()
        if type(thing) is torch.Tensor and thing.dtype.is_floating_point and thing.dim() == 4
        if thing.shape[1:] == (channels, height, width)
    )


@pytest.fixture(scope="module")
def set_up():
    """A network, its images, some of them fooled by AutoAttack, and AutoAttack with a few queries."""

    def quick_build(*arguments, **settings):
        package = BUILD(*arguments, **settings)
        package.square.n_queries, package.fab.n_iter = 10, 2
        package.apgd.n_iter = package.apgd_targeted.n_iter = 4
        return package

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES)).eval()
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = model(as_floats(images)).argmax(1).numpy()
    labels[::11] = (labels[::11] + 1) % CLASSES
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "build", quick_build)
        yield model, images, labels


@pytest.fixture(scope="module")
def streamed(set_up, tmp_path_factory: pytest.TempPathFactory):
    """The evaluation of images that are read, its store, and its journal."""
    model, images, labels = set_up
    store, folder = RecordedImages(images), tmp_path_factory.mktemp("state")
    data = Split(store, labels, CLASSES, np.arange(IMAGES))
    attacks = ["clean", "pgd2", "autoattack"]
    gc.freeze()  # so that only what is made from here on is looked through
    found = evaluate(model, data, attacks=attacks, threat=THREAT, batch_size=BATCH, state_dir=folder)
    gc.unfreeze()
    return found, store, folder / "autoattack"


def test_an_evaluation_holds_no_more_floats_than_a_few_batches(streamed):
    _, store, _ = streamed
    assert sum(store.asked) > 4 * IMAGES  # several attacks read them all
    assert max(store.asked) == BATCH and max(store.floats) <= 4 * BATCH


def test_images_that_are_read_get_the_verdicts_of_those_in_memory(streamed, set_up):
    model, images, labels = set_up
    data = Split(images, labels, CLASSES, np.arange(IMAGES))
    resident = evaluate(model, data, attacks=["clean", "pgd2", "autoattack"], threat=THREAT, batch_size=BATCH)
    assert streamed[0].to_json() == resident.to_json()
    assert all(np.array_equal(streamed[0].outcomes[name].correct, o.correct) for name, o in resident.outcomes.items())
    clean, robust = (int(resident.outcomes[name].correct.sum()) for name in ("clean", "autoattack"))
    assert 0 < robust < clean < IMAGES


def test_autoattack_of_the_floats_at_once_finds_the_same_images(streamed, set_up):
    model, images, labels = set_up
    correct = streamed[0].outcomes["clean"].correct
    x, y = as_floats(images[correct]), torch.from_numpy(labels[correct])
    whole = autoattack(model, x, y, threat=THREAT, batch_size=BATCH)
    assert np.array_equal(whole.robust.numpy(), streamed[0].outcomes["autoattack"].correct[correct])
    kept = {int(i): image for path in streamed[2].iterdir() for i, image in fooled_in(path)}
    assert kept and kept.keys() == set((~whole.robust).nonzero().flatten().tolist())
    assert all(torch.equal(whole.x_adv[i], image) for i, image in kept.items())


def fooled_in(path):
    with safetensors.safe_open(path, framework="pt") as file:
        return list(zip(file.get_tensor("indices"), file.get_tensor("x_adv"), strict=True))


def test_the_journal_has_the_fingerprint_of_the_images_at_once_so_that_old_ones_resume(streamed, set_up):
    model, images, labels = set_up
    correct = streamed[0].outcomes["clean"].correct
    x, y = as_floats(images[correct]), torch.from_numpy(labels[correct])
    settings = {
        **{"package": official.VERSION, "version": "standard", "targets": CLASSES - 1},
        **{"seed": 0, "batch_size": BATCH, "precision": "fp32"},
    }
    head = [settings, "linf", THREAT.eps, repr(model), list(x.shape)]
    digest = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
    for name, tensor in [*sorted(model.state_dict().items()), ("images", x), ("labels", y)]:
        digest.update(f"{name} {tensor.dtype}".encode() + tensor.contiguous().numpy().tobytes())
    headers = [safetensors.safe_open(path, framework="pt").metadata() for path in streamed[2].iterdir()]
    assert len(headers) > 10 and {header["fingerprint"] for header in headers} == {digest.hexdigest()}
