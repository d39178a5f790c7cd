import numpy as np
import pytest
import torch

from ltat.data import Augment, BalancedPlan, FixedPlan, ResidentLoader, ShufflePlan, Split
from ltat.errors import LtatError

COUNTS = [40, 20, 9, 4]
LABELS = np.repeat(np.arange(4), COUNTS)
N = len(LABELS)


def split(height=6, width=5, channels=3):
    images = np.random.default_rng(1).integers(1, 256, (N, height, width, channels), dtype=np.uint8)
    return Split(images, LABELS, 4, np.arange(N))


def balanced(**changes):
    return BalancedPlan(**({"labels": LABELS, "num_classes": 4, "gamma": "ir/2", "db_seed": 0, "seed": 5} | changes))


def pixels(batches):
    return torch.cat([batch.images for batch in batches])


def naive_augment(image, choice, pad, mode):
    """Pad one image, cut, mirror: the textbook order."""
    top, left, mirrored = choice
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode={"zero": "constant", "reflect": "reflect"}[mode])
    cut = padded[top : top + image.shape[0], left : left + image.shape[1]]
    return cut[:, ::-1] if mirrored else cut


@pytest.mark.parametrize("mode", ["zero", "reflect"])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("pad", [0, 1, 4])
def test_augmentation_is_pad_cut_mirror(pad, flip, mode):
    data, augment = split(), Augment(pad, flip, mode)
    plan = balanced()
    draws = augment.draw(plan.size(0), 3, 2)
    found = pixels(ResidentLoader(data, plan, batch_size=16, augment=augment, seed=3).epoch(2))
    for k, position in enumerate(plan.epoch(2)):
        choice = *(draws.shift[k] + pad).tolist(), bool(draws.mirrored[k])
        expected = naive_augment(data.images[position], choice, pad, mode).transpose(2, 0, 1)
        np.testing.assert_array_equal(found[k].numpy(), expected.astype(np.float32) / np.float32(255))


def test_draws_cover_every_offset_and_both_sides():
    draws = Augment(2, True).draw(5000, 0, 0)
    for values, kinds in ((draws.shift[:, 0] + 2, 5), (draws.shift[:, 1] + 2, 5), (draws.mirrored.long(), 2)):
        frequency = np.bincount(values.numpy(), minlength=kinds) / 5000
        assert len(frequency) == kinds
        assert abs(frequency - 1 / kinds).max() < 0.03
    assert not Augment(2, False).draw(5000, 0, 0).mirrored.any()


def test_padding_is_black_and_nothing_of_another_image():
    data = split()
    images = np.ascontiguousarray(np.broadcast_to(LABELS[:, None, None, None].astype(np.uint8) + 1, data.images.shape))
    loader = ResidentLoader(
        Split(images, LABELS, 4, np.arange(N)), ShufflePlan(N, 0), batch_size=9, augment=Augment(4, True)
    )
    seen_black = False
    for batch in loader.epoch(0):
        values = (batch.images * 255).round().long()
        own = batch.labels[:, None, None, None] + 1
        assert ((values == own) | (values == 0)).all()
        seen_black |= bool((values == 0).any())
    assert seen_black


@pytest.mark.parametrize("augment", [None, Augment(2, True)])
def test_pixels_do_not_depend_on_batch_size_or_start(augment):
    plan = balanced()
    whole = pixels(ResidentLoader(split(), plan, batch_size=plan.size(0), augment=augment, seed=1).epoch(4))
    for batch_size in (1, 7, 32):
        loader = ResidentLoader(split(), plan, batch_size=batch_size, augment=augment, seed=1)
        assert torch.equal(pixels(loader.epoch(4)), whole)
        assert torch.equal(pixels(loader.epoch(4, start=13)), whole[13:])


def test_draws_do_not_depend_on_the_plans_length():
    augment = Augment(3, True)
    short, long = augment.draw(10, 0, 0), augment.draw(1000, 0, 0).at(slice(0, 10))
    assert torch.equal(short.shift, long.shift)
    assert torch.equal(short.mirrored, long.mirrored)


def test_epochs_and_seeds_differ():
    def first(seed, epoch):
        return pixels(
            ResidentLoader(split(), FixedPlan(np.arange(N)), batch_size=N, augment=Augment(2, True), seed=seed).epoch(
                epoch
            )
        )

    assert torch.equal(first(0, 0), first(0, 0))
    assert not torch.equal(first(0, 0), first(0, 1))
    assert not torch.equal(first(0, 0), first(1, 0))


def test_repeats_get_augmentation_of_their_own():
    loader = ResidentLoader(split(), FixedPlan(np.zeros(40, np.int64)), batch_size=40, augment=Augment(2, True))
    assert len({image.numpy().tobytes() for image in pixels(loader.epoch(0))}) > 20


def test_batch_is_as_promised():
    batch = next(ResidentLoader(split(), ShufflePlan(N, 0), batch_size=8).epoch(0))
    assert batch.images.shape == (8, 3, 6, 5)
    assert batch.images.dtype == torch.float32
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == batch.indices.dtype == torch.int64
    np.testing.assert_array_equal(batch.labels, LABELS[batch.indices])
    assert batch.images.min() > 0
    assert batch.images.max() <= 1


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("batch_size", [1, 8, N - 1, N])
def test_length_is_the_number_of_batches(batch_size, drop_last):
    loader = ResidentLoader(split(), ShufflePlan(N, 0), batch_size=batch_size, drop_last=drop_last)
    sizes = [len(batch.labels) for batch in loader.epoch(0)]
    assert len(sizes) == loader.steps(0)
    assert sum(sizes) == (N // batch_size * batch_size if drop_last else N)
    assert sum(len(b.labels) for b in loader.epoch(0, start=N)) == 0


def test_shuffle_gives_every_image_once_in_a_new_order():
    plan = ShufflePlan(N, 3)
    orders = [plan.epoch(e).tolist() for e in range(3)]
    assert all(sorted(order) == list(range(N)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


@pytest.mark.parametrize("resample", ["once", "per_epoch"])
def test_balanced_epoch_has_every_class_m_times(resample):
    plan = balanced(resample=resample)
    epochs = [plan.epoch(e) for e in range(3)]
    assert all(np.bincount(LABELS[epoch]).tolist() == [20] * 4 for epoch in epochs)
    assert plan.size(0) == 80
    same = [sorted(epoch.tolist()) == sorted(epochs[0].tolist()) for epoch in epochs[1:]]
    assert same == [resample == "once"] * 2
    assert epochs[0].tolist() != epochs[1].tolist()
    assert epochs[1].tolist() == balanced(resample=resample).epoch(1).tolist()


def test_balanced_order_and_draw_have_seeds_of_their_own():
    base, reordered, redrawn = (balanced(**c).epoch(0).tolist() for c in ({}, {"seed": 6}, {"db_seed": 1}))
    assert sorted(base) == sorted(reordered)
    assert base != reordered
    assert sorted(base) != sorted(redrawn)


def test_large_padding_can_push_the_image_out_of_sight():
    loader = ResidentLoader(split(2, 2), ShufflePlan(N, 0), batch_size=N, augment=Augment(5, False))
    assert (pixels(loader.epoch(0)).flatten(1).sum(1) == 0).any()


@pytest.mark.parametrize(
    ("build", "fragment"),
    [
        (lambda: ResidentLoader(split(), ShufflePlan(N, 0), batch_size=0), "batch size 0"),
        (lambda: ResidentLoader(split(), ShufflePlan(N, 0), batch_size=N + 1, drop_last=True), f"batch size {N + 1}"),
        (lambda: ResidentLoader(split(), ShufflePlan(N + 1, 0), batch_size=4).epoch(0), f"index {N} "),
        (lambda: ResidentLoader(split(), FixedPlan(np.array([-1])), batch_size=1).epoch(0), "index -1"),
        (lambda: ResidentLoader(split(), ShufflePlan(N, 0), batch_size=4).epoch(0, start=N + 1), f"start {N + 1}"),
        (lambda: ResidentLoader(split(), ShufflePlan(N, 0), batch_size=4, augment=Augment(5, True, "reflect")), "6x5"),
        (lambda: Augment(-1, True), "-1 pixels"),
        (lambda: Augment(1, True, "edge"), "'edge'"),
        (lambda: balanced(resample="weekly"), "'weekly'"),
    ],
)
def test_wrong_use_is_refused_at_once(build, fragment):
    with pytest.raises(LtatError, match=fragment):
        build()
