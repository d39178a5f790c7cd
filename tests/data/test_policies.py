"""RandAugment, AutoAugment and Cutout: seeded by place, and what torchvision does."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from ltat.data import Augment, FixedPlan, ResidentLoader, Split, TorchLoader
from ltat.data.policies import altered, find_policy
from ltat.errors import LtatError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
SPLIT = Split(IMAGES, np.arange(12) % 3, 3, np.arange(12))
PLAN = FixedPlan(np.array([3, 3, 3, 0, 11, 5, 5, 1]))


def images(loader, epoch=1, start=0):
    return torch.cat([batch.images for batch in loader.epoch(epoch, start)])


@pytest.mark.parametrize("name", ["randaugment", "autoaugment"])
def test_a_policy_comes_before_crop_and_flip_and_is_seeded_by_place(name):
    augment = Augment(2, True, policy=find_policy(name), cutout=4)
    whole = images(ResidentLoader(SPLIT, PLAN, batch_size=8, augment=augment, seed=4))
    assert torch.equal(images(ResidentLoader(SPLIT, PLAN, batch_size=3, augment=augment, seed=4), start=2), whole[2:])
    assert torch.equal(images(TorchLoader(SPLIT, PLAN, batch_size=3, augment=augment, seed=4, workers=1)), whole)
    draws = augment.draw(8, 4, 1)
    raw = torch.from_numpy(IMAGES[PLAN.positions])
    assert torch.equal(augment.crop(altered(raw, augment.policy, draws.policy_seeds), None, draws), whole)
    assert not torch.equal(whole[0], whole[1])


def test_a_policy_is_torchvisions_under_the_places_seed():
    raw, seeds = torch.from_numpy(IMAGES[:4]), torch.tensor([7, 8, 9, 2**63 - 2])
    found = altered(raw, find_policy("randaugment", 2, 8), seeds)
    for k, seed in enumerate(seeds.tolist()):
        torch.manual_seed(seed)
        expected = v2.RandAugment(num_ops=2, magnitude=8)(raw[k].permute(2, 0, 1))
        assert torch.equal(found[k], expected.permute(1, 2, 0))
    assert not torch.equal(found, raw)


def test_autoaugment_is_the_policy_found_on_cifar10():
    assert find_policy("autoaugment").policy is v2.AutoAugmentPolicy.CIFAR10


def test_every_kind_of_choice_is_drawn_apart():
    draws = Augment(4, True, policy=lambda image: image, cutout=4).draw(4000, 1, 1)
    kinds = [draws.shift.flatten()[:4000], draws.mirrored, draws.policy_seeds, draws.hole.flatten()[:4000]]
    correlation = np.corrcoef([kind.double().numpy() for kind in kinds])
    assert np.abs(correlation - np.eye(4)).max() < 0.1


def test_a_policy_leaves_the_generator_of_the_process_alone():
    before = torch.get_rng_state()
    augment = Augment(0, False, policy=find_policy("randaugment"))
    for workers in (0, 1):
        images(TorchLoader(SPLIT, PLAN, batch_size=4, augment=augment, workers=workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_policies_serve_grey_images_too():
    grey = Split(np.ascontiguousarray(IMAGES[..., :1]), SPLIT.labels, 3, SPLIT.indices)
    for name in ("randaugment", "autoaugment"):
        loader = ResidentLoader(grey, PLAN, batch_size=8, augment=Augment(0, False, policy=find_policy(name)))
        assert images(loader).shape == (8, 1, 16, 16)


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_refused_before_training(channels):
    split = Split(np.zeros((3, 8, 8, channels), np.uint8), np.arange(3), 3, np.arange(3))
    with pytest.raises(LtatError, match=f"{channels} channels"):
        ResidentLoader(split, FixedPlan(np.arange(3)), batch_size=1, augment=Augment(0, False, policy=lambda x: x))


@pytest.mark.parametrize("size", [1, 4, 5, 40])
def test_cutout_is_a_black_square_clipped_at_the_border(size):
    white = Split(np.full((1, 9, 12, 3), 255, np.uint8), np.zeros(1, np.int64), 1, np.zeros(1, np.int64))
    plan = FixedPlan(np.zeros(400, np.int64))
    augment = Augment(0, False, cutout=size)
    found = images(ResidentLoader(white, plan, batch_size=400, augment=augment, seed=1), epoch=2)
    shares = augment.draw(400, 1, 2).hole.numpy()
    for image, (y, x) in zip(found.numpy(), shares, strict=True):
        centre, reach = (int(y * 9), int(x * 12)), size // 2  # as DeVries & Taylor: 2 * (size // 2) pixels wide
        expected = np.ones((3, 9, 12), np.float32)
        top, left = max(0, centre[0] - reach), max(0, centre[1] - reach)
        expected[:, top : centre[0] + reach, left : centre[1] + reach] = 0
        np.testing.assert_array_equal(image, expected)
    if size == 4:
        lost = 1 - found.mean(dim=(0, 1))
        assert lost.min() > 0, "every pixel is hit, the corners included"


def test_unknown_policies_and_negative_holes_are_refused():
    with pytest.raises(LtatError, match="'trivial'; choose one of none, randaugment, autoaugment"):
        find_policy("trivial")
    with pytest.raises(LtatError, match="cutout of -1"):
        Augment(0, False, cutout=-1)
    for wrong in ({"cutout": 10**20}, {"pad": 10**20}):  # too large for a tensor
        with pytest.raises(LtatError, match=r"100000000000000000000 pixels is outside 0\.\.4096"):
            Augment(**({"pad": 0, "flip": False} | wrong))
