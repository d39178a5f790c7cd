"""Whole runs: what they leave, what they learn, and what stops them before they begin."""

import io
import json
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from ltat.attacks import official
from ltat.config import Asked, RunConfig
from ltat.config.resolving import resolve
from ltat.errors import LtatError
from ltat.evaluation import evaluate
from ltat.models import build_model, load_model, read_card, save_model
from ltat.training import Trainer, prepare, train, validation
from ltat.training.dominance import distillation_dominates
from ltat.training.environment import determinism
from ltat.training.reporting import Reporter
from ltat.training.run_data import load_data
from tests.attacks import few_steps
from tests.training.test_resume import Interrupting
from tests.training.tiny import complete_config, tiny_config


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a teacher, for tests that only read."""
    folder = tmp_path_factory.mktemp("taught")
    train(tiny_config(), folder)
    return folder


@pytest.fixture(scope="module")
def untaught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without one, likewise."""
    folder = tmp_path_factory.mktemp("untaught")
    train(tiny_config("method=at-bsl"), folder)
    return folder


def test_a_run_folder_explains_itself(taught: Path):
    folder = taught
    present = {path.name for path in folder.iterdir()}
    wanted = {"config.toml", "env.json", "indices.json", "metrics.jsonl", "report.json", "state.pt"}
    weights = {f"{name}.{end}" for name in ("best", "last", "teacher") for end in ("safetensors", "json")}
    assert wanted | weights <= present
    settings = tomllib.loads((folder / "config.toml").read_text())
    assert settings["kd"]["alpha"] == 1.0
    assert settings["aug"].items() >= {"pad": 0, "flip": False, "policy": "none"}.items()
    assert settings["seed"] == {"subset": 0, "db": 0, "train": 0}
    report = json.loads((folder / "report.json").read_text())
    assert set(report) == {"teacher", "best", "last"}
    assert {"overall", "balanced", "tail", "many", "medium", "few", "per_class"} <= set(report["last"]["pgd2"])
    assert {"ltat", "commit", "machine", "device", "threads"} <= set(json.loads((folder / "env.json").read_text()))


def test_the_recorded_indices_are_the_images_trained_on(taught: Path):
    record = json.loads((taught / "indices.json").read_text())
    lists = {name: set(entry["indices"]) for name, entry in record.items() if "indices" in entry}
    assert lists["train"] | lists["val"] == lists["subset"] and not lists["train"] & lists["val"]
    assert lists["balanced"] <= lists["train"]
    assert all(len(entry["sha256"]) == 64 for entry in record.values())


def test_every_class_keeps_images_on_both_sides_of_the_hold_out():
    data = load_data(complete_config())
    assert data.val.counts.min() >= 1 and data.train.counts.min() >= 1
    np.testing.assert_array_equal(data.val.counts + data.train.counts, data.dataset.train.counts)


def test_the_loss_falls_and_robust_accuracy_beats_chance(run_tiny):
    folder = run_tiny("run", "method=at-bsl", "train.epochs=12", "attack.steps=5", "eval.n_examples=200")
    losses = [row["loss"] for row in rows(folder)]
    assert losses[-1] < 0.8 * losses[0]
    assert json.loads((folder / "report.json").read_text())["last"]["pgd2"]["overall"] > 20


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(untaught: Path, run_tiny):
    again, other = (run_tiny(f"s{seed}", "method=at-bsl", f"seed.train={seed}") for seed in (0, 1))
    first, again, other = (load_file(folder / "last.safetensors") for folder in (untaught, again, other))
    assert all(first[name].equal(again[name]) for name in first)
    assert not all(first[name].equal(other[name]) for name in first)


def test_a_run_leaves_the_global_generator_as_it_was(run_tiny):
    before = torch.get_rng_state()
    run_tiny("run", "method=pgd-at", "train.epochs=1")
    assert torch.equal(before, torch.get_rng_state())


def test_the_training_seed_changes_neither_the_subset_nor_the_balanced_set(tmp_path: Path):
    def recorded(setting: str) -> dict:
        with pytest.raises(KeyboardInterrupt):
            train(tiny_config(setting), tmp_path / setting, reporter=Interrupting(0))
        return json.loads((tmp_path / setting / "indices.json").read_text())

    one, other, db = (recorded(setting) for setting in ("seed.train=0", "seed.train=1", "seed.db=5"))
    assert one == other
    assert db["subset"] == one["subset"] and db["balanced"] != one["balanced"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_without_nan(run_tiny, precision: str):
    folder = run_tiny("run", f"train.precision={precision}")
    assert all(np.isfinite(row["loss"]) for row in rows(folder))
    assert all(value.isfinite().all() for value in load_file(folder / "last.safetensors").values())
    assert {value.dtype for value in load_file(folder / "last.safetensors").values()} <= {torch.float32, torch.int64}


def test_the_best_checkpoint_is_the_first_with_the_highest_score(run_tiny):
    folder = run_tiny("run", "method=at-bsl", "train.epochs=4")
    scores = [row["score"] for row in rows(folder)]
    assert read_card(folder / "best").extra["epoch"] == 1 + scores.index(max(scores))
    assert read_card(folder / "last").extra["epoch"] == 4


def test_selection_starts_and_repeats_where_it_is_told(run_tiny):
    folder = run_tiny("run", "method=at-bsl", "train.epochs=5", "select.from=2", "select.every=2")
    assert [row["epoch"] for row in rows(folder) if "score" in row] == [2, 4, 5]


def test_selection_on_the_test_set_is_labelled_and_holds_nothing_out(run_tiny):
    folder = run_tiny("run", "method=at-bsl", "train.epochs=1", "select.set=test")
    record = json.loads((folder / "indices.json").read_text())
    assert "val" not in record and record["train"]["sha256"] == record["subset"]["sha256"]
    report = json.loads((folder / "report.json").read_text())
    assert any("test set" in flag for flag in report["best"]["flags"])
    assert not any("test set" in flag for flag in report["last"]["flags"])


def test_without_selection_there_is_no_best(run_tiny):
    folder = run_tiny("run", "method=at-bsl", "train.epochs=1", "select.set=none")
    assert not (folder / "best.safetensors").exists()
    assert set(json.loads((folder / "report.json").read_text())) == {"last"}


def test_the_best_teacher_is_distilled_from_when_asked(run_tiny):
    folder = run_tiny("run", "teacher.ckpt=best", "teacher.epochs=3", "train.epochs=1")
    best, used = load_file(folder / "teacher-best.safetensors"), load_file(folder / "teacher.safetensors")
    assert all(best[name].equal(used[name]) for name in best)


def test_a_given_teacher_is_used_and_not_trained(run_tiny):
    first = run_tiny("first", "train.epochs=1")
    second = run_tiny("second", "train.epochs=1", f"teacher.path={first / 'teacher.safetensors'}")
    assert {row["stage"] for row in rows(second)} == {"student"}
    assert (first / "last.safetensors").read_bytes() == (second / "last.safetensors").read_bytes()


def test_autoattack_of_one_checkpoint_does_not_meet_the_state_of_another(run_tiny, monkeypatch):
    monkeypatch.setattr(official, "build", few_steps.build)
    folder = run_tiny("run", "teacher.epochs=1", "train.epochs=1", 'eval.attacks=["autoattack"]', "eval.n_examples=10")
    report = json.loads((folder / "report.json").read_text())
    assert {"teacher", "best", "last"} == set(report) and all("autoattack" in part for part in report.values())


def test_training_evaluation_and_card_share_the_threat_model(run_tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(
        validation, "evaluate", lambda *a, **settings: seen.append(settings) or evaluate(*a, **settings)
    )
    folder = run_tiny("run", "method=at-bsl", "attack.norm=l2", "attack.eps=0.7", "train.precision=bf16")
    report = json.loads((folder / "report.json").read_text())
    for part in report.values():
        assert part["threat_model"] == {"norm": "l2", "eps": 0.7, "box": [0.0, 1.0]}
    assert {(s["threat"].norm, s["threat"].eps, s["precision"]) for s in seen} == {("l2", 0.7, "bf16")}
    assert read_card(folder / "last").extra["threat_model"] == {"norm": "l2", "eps": 0.7}


def test_the_prior_counts_the_images_trained_on():
    plan = prepare(tiny_config())
    counts = Trainer(plan.student).class_counts(1)
    assert counts.tolist() == plan.data.train.counts.tolist()
    assert counts.sum() < len(plan.data.dataset.train)
    balanced = prepare(tiny_config("method=at-bsl", "data.sampling=balanced")).student
    assert Trainer(balanced).class_counts(1).unique().numel() == 1


def test_the_learning_rate_of_every_epoch_is_the_schedules(run_tiny):
    folder = run_tiny("run", "method=at-bsl", "train.epochs=4", "schedule.milestones=[2, 4]", "select.set=none")
    assert [row["lr"] for row in rows(folder)] == pytest.approx([0.1, 0.01, 0.01, 0.001])


def test_the_score_is_balanced_over_classes(untaught: Path):
    for row in rows(untaught):
        assert row["score"] == row["val"]["pgd2"]["balanced"]
    assert any(row["val"]["clean"]["balanced"] != row["val"]["clean"]["overall"] for row in rows(untaught))


@pytest.mark.parametrize(("where", "metric"), [("val", "pgd10"), ("test", "pgd20")])
def test_the_metric_of_selection_is_the_one_documented(where: str, metric: str):
    asked = Asked(RunConfig(method="at-bsl", data={"name": "digits"}, select={"set": where}))
    assert resolve(asked, num_classes=10).select.metric == metric


def test_the_stages_begin_with_different_weights_that_the_seed_fixes():
    one, again, other = (prepare(tiny_config(f"seed.train={seed}")) for seed in (0, 0, 1))
    first = one.student.model.conv1.weight
    assert torch.equal(first, again.student.model.conv1.weight)
    assert not torch.equal(first, one.teacher.model.conv1.weight)
    assert not torch.equal(first, other.student.model.conv1.weight)


def test_attack_noise_differs_from_step_to_step_and_is_fixed_by_the_seed():
    stage = prepare(tiny_config("method=pgd-at", "attack.steps=0")).student
    batch = next(iter(stage.loader.epoch(1)))
    seen = []
    stage.method.loss = lambda step: seen.append(step.x_adv) or type(stage.method).loss(stage.method, step)
    trainer = Trainer(stage)
    for epoch, index in ((1, 0), (1, 1), (2, 0), (1, 0)):
        trainer.train_step(trainer.step(batch, epoch, index, trainer.class_counts(epoch)))
    assert torch.equal(seen[0], seen[3])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])


def test_a_student_may_start_from_its_trained_teacher(run_tiny):
    folder = run_tiny("run", "student.init=teacher", "optim.lr=0", "optim.wd=0", "train.epochs=1")
    teacher, student = load_file(folder / "teacher.safetensors"), load_file(folder / "last.safetensors")
    names = [name for name in teacher if "running" not in name and "num_batches" not in name]
    assert all(teacher[name].equal(student[name]) for name in names)


def test_a_dominant_distillation_term_is_told_once(tmp_path):
    heard = io.StringIO()
    config = tiny_config("kd.alpha=100000", "kd.ramp=none", "train.epochs=2", "optim.lr=0.0001")
    train(config, tmp_path / "run", reporter=Reporter(Console(file=heard)))
    assert heard.getvalue().count("kd_ratio") == 1


# Epochs of self-distill on digits, ratio 20: (loss, kd_ratio, training accuracy under attack).
LEARNING = [(1.510, 0.02, 50), (0.458, 0.19, 77), (0.137, 1.40, 98), (0.096, 4.09, 100), (0.090, 5.59, 100)]
COLLAPSING = [(1.963, 0.29, 48), (1.703, 1.44, 62), (3.204, 2.14, 62), (5.573, 2.68, 40)]  # natural teacher, alpha 20


@pytest.mark.parametrize(("run", "expected"), [(LEARNING, [False] * 5), (COLLAPSING, [False, False, True, True])])
def test_the_distillation_term_is_warned_of_where_it_takes_over_and_not_where_the_rest_is_learned(run, expected):
    """The demo was warned of for a ratio above 5, and a collapse, whose ratio stays below 3, was not."""
    rows = [{"loss": loss, "kd_ratio": ratio, "train_adv": accuracy} for loss, ratio, accuracy in run]
    assert [distillation_dominates(rows[: n + 1]) for n in range(len(rows))] == expected
    assert not distillation_dominates([{"loss": -1.0}])


def test_determinism_is_asked_for_inside_and_given_back_after():
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with determinism(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        with determinism(False):
            assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    with determinism(True):
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert not torch.are_deterministic_algorithms_enabled()


def test_cudnn_looks_for_its_quickest_kernels_while_a_run_may_differ_in_the_last_bit():
    before = torch.backends.cudnn.benchmark
    with determinism(False):
        assert torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.benchmark == before
    torch.use_deterministic_algorithms(True)  # by whoever calls
    try:
        with determinism(False):
            assert not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_teacher_of_other_channels_is_refused_before_anything_is_written(tmp_path: Path):
    save_model(build_model("small", num_classes=10, in_channels=3), tmp_path / "t", extra={})
    with pytest.raises(LtatError, match="3 channels"):
        train(tiny_config(f"teacher.path={tmp_path / 't'}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_is_found_again_from_another_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = complete_config("data.name=npz", "data.dir=mine", "data.imbalance_ratio=natural")
    assert config.data.dir == str(tmp_path / "mine")


def test_normalisation_by_the_training_set_travels_with_the_model(run_tiny):
    folder = run_tiny("run", "method=pgd-at", "train.epochs=1", "model.normalize=train")
    assert load_model(folder / "last").normalization is not None


def test_the_teacher_sees_the_balanced_set_only():
    plan = prepare(tiny_config())
    seen = np.concatenate([batch.labels.numpy() for batch in plan.teacher.loader.epoch(1)])
    counts = np.bincount(seen, minlength=10)
    assert counts.max() - counts.min() <= 32  # the dropped last batch, at most
    assert plan.teacher.loader.plan.size(1) == 10 * (plan.data.train.counts.max() // 2)


@pytest.mark.parametrize(
    ("assignments", "names"),
    [
        (["model.name=vgg"], ["vgg", "resnet18"]),
        (["data.name=mnist"], ["mnist", "digits"]),
        (["data.name=cifar10"], ["cifar10", "--data-dir"]),
        (["data.name=npz", "data.dir=nowhere"], ["nowhere"]),
        (["train.batch_size=100000"], ["100000"]),
        (["attack.loss=unheard"], ["unheard"]),
        (["attack.start=unheard"], ["unheard"]),
        (["schedule.kind=unheard"], ["unheard"]),
        (["select.metric=unheard"], ["unheard"]),
        (['eval.attacks=["unheard"]'], ["unheard"]),
        (["teacher.path=nowhere.safetensors"], ["nowhere.safetensors"]),
        (["train.device=quantum"], ["quantum"]),
        (["train.graph=true"], ["train.graph=true", "cpu", "train.graph=false"]),
        (["student.init=teacher", "teacher.model=resnet18"], ["student.init"]),
        (["data.imbalance_ratio=100000"], ["100000"]),
        (["eval.attacks=[]"], ["eval.attacks"]),
        (["eval.n_examples=500"], ["eval.n_examples=500", "400"]),
        (["select.from=9"], ["select.from=9"]),
        (["select.from=3", "teacher.ckpt=best"], ["teacher", "select.from=3"]),
        (["teacher.ckpt=best", "select.set=none"], ["teacher.ckpt"]),
        (["teacher.batch_size=5000"], ["teacher", "5000"]),
        (["teacher.schedule.kind=unheard"], ["teacher", "unheard"]),
        (["optim.nesterov=true", "optim.momentum=0"], ["momentum"]),
        (["method=pgd-at", "model.name=resnet18", "train.drop_last=false", "train.batch_size=73"], ["(1, 1, 8, 8)"]),
        (["seed.train=4294967296"], ["seed.train"]),
    ],
)
def test_what_cannot_work_fails_before_anything_is_written(tmp_path: Path, assignments, names):
    with pytest.raises(LtatError) as error:
        train(tiny_config(*assignments), tmp_path / "run")
    assert all(name in str(error.value) for name in names), str(error.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lr", ["1e30", "1e38"])
def test_a_run_that_is_no_longer_finite_stops(run_tiny, lr: str):
    with pytest.raises(LtatError, match="no longer finite"):
        run_tiny("run", "method=pgd-at", f"optim.lr={lr}", "train.epochs=1")


def test_a_loader_worker_that_dies_during_a_step_is_one_sentence(tmp_path, monkeypatch):
    """torch tells of it by a signal, which arrives wherever the program stands: here, outside the loader."""

    def step(*_, **__):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr("ltat.training.run.fit", step)
    with pytest.raises(LtatError, match=r"a loader worker died \(DataLoader worker \(pid 7\).*; lower loader.workers"):
        train(tiny_config("method=at-bsl"), tmp_path / "run")


@pytest.fixture
def awkward(tmp_path) -> Asked[RunConfig]:
    """A run whose AutoAttack meets two limits of its package: three classes, and in l2 images of 12x12."""
    for part in ("train", "test"):
        images = np.random.default_rng(len(part)).integers(0, 256, (12, 12, 12, 1), dtype=np.uint8)
        np.savez(tmp_path / f"{part}.npz", images=images, labels=np.arange(12) % 3)
    data = ("data.name=npz", f"data.dir={tmp_path}", "data.imbalance_ratio=natural", "train.batch_size=4")
    attack = ("attack.norm=l2", "attack.eps=0.5", "attack.step_size=0.1", "eval.n_examples=6")
    return tiny_config("method=at-bsl", *data, *attack, 'eval.attacks=["clean", "autoattack"]')


def test_what_autoattack_will_leave_out_is_said_before_the_training(awkward, tmp_path, monkeypatch):
    monkeypatch.setattr("ltat.training.run.run_stages", lambda *_: {})
    heard = io.StringIO()
    train(awkward, tmp_path / "run", reporter=Reporter(Console(file=heard, width=200)))
    assert "autoattack: square is left out: in l2 the package cannot tile images of 12x12" in heard.getvalue()
    assert "autoattack: apgd-t is left out: its loss needs 4 classes, the model has 3" in heard.getvalue()


def test_a_package_that_the_evaluation_needs_is_missed_before_the_training(awkward, tmp_path, monkeypatch):
    monkeypatch.delattr("ltat.attacks.official")
    monkeypatch.delitem(sys.modules, "ltat.attacks.official")
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ModuleNotFoundError, match="pyautoattack"):
        train(awkward, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("eps", "step"), [("8.1", "0.1"), ("0.5", "8.1")])
def test_an_l2_length_wider_than_the_images_is_refused_before_the_folder_is_made(tmp_path, eps, step):
    l2 = ("method=at-bsl", "attack.norm=l2", f"attack.eps={eps}", f"attack.step_size={step}")
    with pytest.raises(LtatError, match=r"=8\.1 is wider in l2 than the diagonal 8"):
        train(tiny_config(*l2), tmp_path / "run")
    assert not (tmp_path / "run").exists()
