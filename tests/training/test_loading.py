"""Sampling, augmentation and loader settings on their way into a run."""

import itertools
import json
from fractions import Fraction

import numpy as np
import pytest
import torch

from ltat.data import ClassSamplingPlan, FixedPlan, ImageStore, ProgressivePlan, Split
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.training import prepare
from ltat.training.batches import SAMPLING, build_augment, build_loader, build_plan
from ltat.training.run_data import load_data
from tests.training.tiny import complete_config, tiny_config

CPU = torch.device("cpu")


class Stored(ImageStore):
    """An array that says it has to be read."""

    def __init__(self, pixels):
        self.pixels, self.shape = pixels, pixels.shape

    def read(self, positions):
        return self.pixels[positions]

    def subset(self, positions):
        return Stored(self.pixels[positions])


def test_every_loader_trains_the_same_weights(run_tiny):
    settings = ("method=at-bsl", "train.epochs=2", "aug.pad=1", "aug.policy=randaugment")
    weights = [
        (run_tiny(kind, *settings, f"loader.kind={kind}", "loader.workers=1") / "last.safetensors").read_bytes()
        for kind in ("resident", "torch")
    ]
    assert weights[0] == weights[1]


def test_a_run_may_be_resumed_with_another_loader(run_tiny):
    run_tiny("run", "method=at-bsl", "train.epochs=1")
    run_tiny("run", "method=at-bsl", "train.epochs=1", "loader.kind=torch", "loader.workers=0", resume=True)


@pytest.mark.parametrize(
    ("name", "kind", "facts"),
    [
        ("class_balanced", ClassSamplingPlan, {"power": 0.0}),
        ("square_root", ClassSamplingPlan, {"power": 0.5}),
        ("progressive", ProgressivePlan, {"epochs": 3}),
    ],
)
def test_sampling_by_name_makes_the_plan_of_that_name(name, kind, facts):
    config = complete_config("method=at-bsl", f"data.sampling={name}", "seed.train=5")
    data = load_data(config).train
    plan = build_plan(data, config)
    assert isinstance(plan, kind) and plan.seed == 5
    assert {key: getattr(plan, key) for key in facts} == facts
    np.testing.assert_array_equal(plan.labels, data.labels)


def test_a_plan_of_ones_own_is_served_and_recorded(run_tiny, tmp_path):
    settings = ("method=at-bsl", "data.sampling=file", f"data.plan_file={tmp_path / 'plan.npy'}", "train.epochs=1")
    config = complete_config(*settings)
    train = load_data(config).train
    own = np.append(np.arange(len(train))[::-1], [0, 0])
    np.save(tmp_path / "plan.npy", own)
    plan = build_plan(train, config)
    assert isinstance(plan, FixedPlan) and plan.positions.tolist() == own.tolist()
    indices = json.loads((run_tiny("run", *settings) / "indices.json").read_text())
    assert indices["plan"]["indices"] == np.asarray(indices["train"]["indices"])[own].tolist()
    np.save(tmp_path / "plan.npy", own[:-1])
    with pytest.raises(LtatError, match=r"plan in indices\.json"):
        run_tiny("run", *settings, resume=True)


def test_a_plan_without_one_of_the_classes_is_refused(tmp_path):
    config = complete_config("method=at-bsl", "data.sampling=file", f"data.plan_file={tmp_path / 'plan.npy'}")
    train = load_data(config).train
    np.save(tmp_path / "plan.npy", np.flatnonzero(train.labels != 3))
    with pytest.raises(LtatError, match=r"plan\.npy names no image of class 3; add one of each class"):
        build_plan(train, config)


def test_the_prior_follows_what_each_epoch_samples(monkeypatch, run_tiny):
    seen = []
    monkeypatch.setattr(
        find_method("at-bsl"), "end_step", lambda self, step, _: seen.append((step.epoch, step.class_counts.tolist()))
    )
    run_tiny("run", "method=at-bsl", "data.sampling=progressive")
    config = complete_config("method=at-bsl", "data.sampling=progressive")
    data = load_data(config).train
    plan = build_plan(data, config)
    rehearsed, trained = [counts for _, counts in seen[:2]], [dict(seen[2:])[epoch] for epoch in (1, 2, 3)]
    assert trained == [np.bincount(data.labels[plan.epoch(epoch)]).tolist() for epoch in (1, 2, 3)]
    assert trained[0] == data.counts.tolist() != trained[2]
    assert rehearsed == [trained[0], trained[2]]


def test_reading_a_set_into_memory_shows_its_progress(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
    for k, (part, name) in enumerate(itertools.product(("train", "test"), "abc")):
        (tmp_path / part / name).mkdir(parents=True)
        for j in range(2):
            Image.fromarray(pixels[2 * k + j]).save(tmp_path / part / name / f"{j}.png")
    settings = ("method=at-bsl", "data.name=imagefolder", f"data.dir={tmp_path}", "data.imbalance_ratio=natural")
    heard = []
    small = ("train.batch_size=2", "eval.n_examples=2", "select.set=none")
    plan = prepare(tiny_config(*settings, *small), lambda what, done, total: heard.append((what, done, total)))
    assert heard == [("reading the images", 6, 6)]
    assert plan.student.loader.why.startswith("resident: ")


def test_augmentation_settings_reach_the_loader_of_both_stages():
    plan = prepare(tiny_config("aug.policy=autoaugment", "aug.cutout=2", "loader.kind=torch", "loader.workers=0"))
    for stage in (plan.student, plan.teacher):
        assert stage.loader.augment.cutout == 2 and stage.loader.augment.policy is not None
        assert stage.loader.why == "torch: as asked"
    bare = prepare(tiny_config("aug.policy=autoaugment", "aug.cutout=2", "teacher.aug=none")).teacher
    assert bare.loader.augment.cutout == 0 and bare.loader.augment.policy is None


def test_the_share_of_memory_reaches_the_choice_of_loader(monkeypatch):
    monkeypatch.setattr("ltat.data.loaders.choice.free_memory", lambda device: 1)
    for share in ("1/4", "1/2"):
        config = complete_config("method=at-bsl", f"loader.share={share}")
        train = load_data(config).train
        store = Split(Stored(train.images), train.labels, train.num_classes, train.indices)
        assert f"exceed {100 * Fraction(share)}% of the" in build_loader(store, config, CPU).why


def test_a_run_finds_its_files_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("dir", "split_file", "plan_file", "train_list", "test_list"):
        config = complete_config("method=at-bsl", f"data.{name}=here", "data.sampling=file")
        assert getattr(config.data, name) == str(tmp_path / "here")


def test_randaugment_takes_its_strength_from_the_settings():
    policy = build_augment(complete_config("aug.policy=randaugment", "aug.ra_ops=3", "aug.ra_magnitude=5")).policy
    assert (policy.num_ops, policy.magnitude) == (3, 5)


@pytest.mark.parametrize(
    ("assignments", "fragment"),
    [
        (["data.sampling=random"], f"'random'; choose one of {', '.join(SAMPLING)}"),
        (["data.sampling=file"], "data.plan_file"),
        (["data.plan_file=plan.npy"], "set it to file"),
        (["data.sampling=file", "data.plan_file=nowhere.npy"], "nowhere.npy"),
        (["aug.policy=cutmix"], "'cutmix'"),
        (["loader.kind=dali"], "'dali'"),
        (["loader.kind=torch", "loader.workers=999"], "999 workers"),
        (["loader.kind=ffcv"], "--format beton"),
    ],
)
def test_what_cannot_be_loaded_is_refused_before_training(assignments, fragment):
    with pytest.raises(LtatError, match=fragment):
        config = complete_config("method=at-bsl", *assignments)
        build_loader(load_data(config).train, config, CPU)
