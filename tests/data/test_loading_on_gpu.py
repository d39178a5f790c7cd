"""Batches on a GPU are those on the CPU, bit for bit."""

import numpy as np
import pytest
import torch

from ltat.data import Augment, BalancedPlan, Split, make_loader
from tests.data.betons import stored
from tests.marks import needs_ffcv

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

LABELS = np.repeat(np.arange(3), [40, 20, 13])
PIXELS = np.random.default_rng(1).integers(0, 256, (73, 9, 8, 3), dtype=np.uint8)
SPLIT = Split(PIXELS, LABELS, 3, np.arange(73))
PLAN = BalancedPlan(LABELS, 3, "ir/2", db_seed=0, seed=5)


@pytest.mark.parametrize("kind", ["resident", "torch", pytest.param("ffcv", marks=needs_ffcv)])
@pytest.mark.parametrize("pad_mode", ["zero", "reflect"])
def test_gpu_batches_are_those_of_the_cpu(kind, pad_mode, tmp_path):
    settings = {"batch_size": 7, "augment": Augment(3, True, pad_mode, cutout=4), "seed": 3}
    split = stored(SPLIT, tmp_path / "split.beton") if kind == "ffcv" else SPLIT
    expected = list(make_loader(SPLIT, PLAN, kind="resident", **settings).epoch(2))
    found = list(make_loader(split, PLAN, kind=kind, device="cuda", workers=1, **settings).epoch(2))
    for one, other in zip(found, expected, strict=True):
        assert one.images.device.type == one.labels.device.type == one.indices.device.type == "cuda"
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(one.images.cpu(), other.images)
        assert torch.equal(one.labels.cpu(), other.labels) and torch.equal(one.indices.cpu(), other.indices)


def test_a_gpus_free_memory_decides_what_stays_on_it():
    assert make_loader(SPLIT, PLAN, device="cuda", batch_size=8).why.startswith("resident: ")
    tiny = make_loader(SPLIT, PLAN, device="cuda", batch_size=8, share=1e-12)
    assert tiny.why.startswith("torch: ") and "free on cuda" in tiny.why
