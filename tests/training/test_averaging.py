"""The averaged network is the average that the settings name, is what a run keeps, and never trains."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from ltat.config import load_config
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.methods.pgd_at import PgdAt
from ltat.models import Classifier, load_model, read_card
from ltat.training import Trainer, prepare, train
from ltat.training.averaging import Ema, build_average
from ltat.training.checkpoints import best_raw
from ltat.training.state_file import write_state
from ltat.training.trainer_state import state_of
from ltat.training.validation import evaluate_stage
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import saved_state, tiny_config

State = dict[str, Tensor]
COUNTER = "num_batches_tracked"
PLAIN = ("method=pgd-at", "train.epochs=3")
EMA = (*PLAIN, "average.kind=ema", "average.decay=0.9", "average.start=2")
SWA = (*PLAIN, "average.kind=swa", "average.start=2")
RAW = "average.raw=true"


def snapshot(model: torch.nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@cache
def trained(*settings: str) -> tuple[Trainer, list[list[State]]]:
    """A trainer after its run, and the raw state after every step of every epoch; tests only read them."""
    stage = prepare(tiny_config(*settings)).student
    steps: list[list[State]] = []
    trainer = Trainer(stage, lambda images: steps[-1].append(snapshot(stage.model)))
    while trainer.epoch < stage.config.train.epochs:
        steps.append([])
        trainer.run_epoch()
    return trainer, steps


def assert_close(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    for name in found:
        torch.testing.assert_close(found[name].double(), expected[name].double(), rtol=1e-5, atol=1e-6, msg=name)


def floats(state: State) -> State:
    return {name: value for name, value in state.items() if value.is_floating_point()}


def moving_average(states: list[State], decay: float) -> Iterator[tuple[str, Tensor]]:
    for name in floats(states[0]):
        mean = states[0][name].double()
        for state in states[1:]:
            mean = decay * mean + (1 - decay) * state[name].double()
        yield name, mean


def test_the_moving_average_is_the_recurrence_over_the_steps_from_its_first_epoch_on():
    trainer, epochs = trained(*EMA)
    steps = [state for epoch in epochs[1:] for state in epoch]
    assert len(steps) > 5
    assert_close(floats(snapshot(trainer.outcome.model)), dict(moving_average(steps, 0.9)))


def test_stochastic_weight_averaging_is_the_plain_mean_over_the_ends_of_epochs():
    trainer, epochs = trained(*SWA)
    ends = [floats(epoch[-1]) for epoch in epochs[1:]]
    mean = {name: torch.stack([end[name].double() for end in ends]).mean(0) for name in ends[0]}
    assert_close(floats(snapshot(trainer.outcome.model)), mean)


@pytest.mark.parametrize("settings", [EMA, SWA])
def test_the_counters_of_batch_norm_are_those_of_the_raw_network_not_rounded_means(settings):
    trainer, _ = trained(*settings)
    raw, averaged = snapshot(trainer.stage.model), snapshot(trainer.outcome.model)
    counters = [name for name in raw if name.endswith(COUNTER)]
    assert counters and all(averaged[name].equal(raw[name]) for name in counters)


@pytest.mark.parametrize("settings", [EMA, SWA])
def test_copied_statistics_are_those_of_the_raw_network_beside_averaged_weights(settings):
    trainer, _ = trained(*settings, "average.bn=copy")
    raw, averaged = snapshot(trainer.stage.model), snapshot(trainer.outcome.model)
    for name in raw:
        assert averaged[name].equal(raw[name]) == ("running" in name or name.endswith(COUNTER)), name


@pytest.mark.parametrize("settings", [EMA, SWA])
def test_recomputed_statistics_are_the_mean_over_the_batches_of_the_epoch(settings):
    trainer, _ = trained(*settings, "average.bn=recompute")
    model = trainer.outcome.model
    weight = model.conv1.weight.double()
    batches = [batch.images.double() for batch in trainer.stage.loader.epoch(trainer.epoch)]
    values = [F.conv2d(images, weight, padding=1).transpose(0, 1).flatten(1) for images in batches]
    mean = torch.stack([value.mean(1) for value in values]).mean(0)
    var = torch.stack([value.var(1) for value in values]).mean(0)
    assert_close({"mean": model.bn1.running_mean, "var": model.bn1.running_var}, {"mean": mean, "var": var})
    assert model.bn1.momentum == 0.1 and not model.training


@pytest.mark.parametrize("settings", [(*EMA, "average.bn=recompute"), SWA])
def test_averaging_leaves_the_trained_network_as_it_would_be_without(settings, tmp_path: Path):
    trainer, _ = trained(*settings)
    alone, _ = trained(*PLAIN)
    raw, without = snapshot(trainer.stage.model), snapshot(alone.outcome.model)
    assert all(raw[name].equal(without[name]) for name in without)
    assert alone.outcome.model is alone.stage.model and state_of(alone)["average"] == {}


@pytest.fixture(scope="module", params=[(*EMA, RAW), (*SWA, "average.bn=recompute")])
def whole_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[str, ...], Path]:
    """Settings, and the folder of a run with them."""
    folder = tmp_path_factory.mktemp("whole")
    train(tiny_config(*request.param), folder)
    return request.param, folder


@pytest.mark.parametrize("steps", [4, 16])
def test_a_run_stopped_before_or_amid_averaging_ends_as_the_whole_run(whole_run, steps: int, tmp_path: Path):
    settings, folder = whole_run
    config = tiny_config(*settings)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, reporter=Interrupting(steps))
    train(config, tmp_path, resume=True)
    assert_same_run(folder, tmp_path)
    whole, parts = saved_state(folder), saved_state(tmp_path)
    average, again = whole["average"], parts["average"]
    assert average["n_averaged"] == again["n_averaged"] > 0
    assert all(value.equal(again["network"][name]) for name, value in average["network"].items())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (EMA, {"kind": "ema", "decay": 0.9, "from_epoch": 2, "bn": "average"}),
        (SWA, {"kind": "swa", "from_epoch": 2, "bn": "average"}),
    ],
)
def test_the_average_is_what_a_run_validates_and_saves_and_the_state_holds_both(settings, says, tmp_path: Path):
    config = tiny_config(*settings, "select.from=3")
    train(config, tmp_path)
    state = saved_state(tmp_path)
    last, best = (load_file(tmp_path / f"{name}.safetensors") for name in ("last", "best"))
    for name, value in last.items():
        assert value.equal(state["average"]["network"][name]) and value.equal(best[name])
    assert not last["conv1.weight"].equal(state["model"]["conv1.weight"])
    assert read_card(tmp_path / "last").extra["average"] == says
    plan = prepare(config)
    kept = replace(plan.student, model=load_model(tmp_path / "last"))
    measured = evaluate_stage(kept, plan.data.val, ("clean", "pgd2")).to_json()
    row = metrics(tmp_path)[-1]
    assert row["score"] == measured["pgd2"]["balanced"]
    assert row["val"]["clean"]["overall"] == measured["clean"]["overall"]


def test_before_averaging_begins_the_raw_network_is_kept(tmp_path: Path):
    config = tiny_config(*EMA, "average.start=3")
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, reporter=Interrupting(16))  # in the last epoch, before its weights are written
    epoch = json.loads((tmp_path / "last.json").read_text())["extra"]["epoch"]
    state = saved_state(tmp_path)
    last = load_file(tmp_path / "last.safetensors")
    assert epoch == state["epoch"] == 2
    assert all(value.equal(state["model"][name]) for name, value in last.items())
    assert "average" not in read_card(tmp_path / "last").extra


@pytest.mark.parametrize(("start", "first"), [("0", 1), ("0.5", 1), ("1.0", 3), ("2", 2)])
def test_averaging_begins_in_the_epoch_that_a_share_or_a_number_names(start: str, first: int):
    trainer, epochs = trained(*PLAIN, "average.kind=swa", f"average.start={start}")
    assert state_of(trainer)["average"]["n_averaged"] == len(epochs) - first + 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_keeps_the_average_in_full_precision(precision: str):
    trainer, _ = trained(*EMA, "average.bn=recompute", f"train.precision={precision}")
    state = snapshot(trainer.outcome.model)
    assert {value.dtype for value in state.values()} == {torch.float32, torch.int64}
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("average.start=4", r"average\.start=4 is beyond the 3 epochs; lower it"),
        ("average.start=-1", r"average\.start=-1"),
        ("average.decay=1", r"average\.decay=1 is not possible: it must be less than 1"),
        ("average.decay=-0.1", r"average\.decay=-0\.1"),
        ("average.kind=mean", r"average\.kind='mean' is not possible"),
        ("average={decay = 0.9, decay_epochs = 2}", r"decay=0\.9 and average\.decay_epochs=2 both set the decay"),
        ("teacher.average.raw=true", r"teacher\.average\.raw=true would report two teachers"),
    ],
)
def test_an_average_that_cannot_be_is_refused_before_anything_is_written(setting: str, says: str, tmp_path: Path):
    method = "method=ard" if "teacher" in setting else PLAIN[0]
    with pytest.raises(LtatError, match=says):
        train(tiny_config(*EMA, method, setting), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_average_of_the_student_is_not_one_of_its_teacher(tmp_path: Path):
    train(tiny_config("train.epochs=1", "average.kind=ema"), tmp_path)
    assert "average" not in read_card(tmp_path / "teacher").extra
    assert saved_state(tmp_path, "teacher-state.pt")["average"] == {}


def test_a_decay_in_epochs_is_that_of_the_steps_of_an_epoch():
    trainer, epochs = trained(*PLAIN, "average.kind=ema", "average.decay_epochs=0.5")
    steps = [state for epoch in epochs for state in epoch]
    decay = math.exp(-2 / len(epochs[0]))
    assert 0.5 < decay < 0.9
    assert_close(floats(snapshot(trainer.outcome.model)), dict(moving_average(steps, decay)))


@pytest.mark.parametrize("batch_size", [16, 48])
def test_a_step_weighs_1_over_e_of_its_first_weight_so_many_epochs_later_in_batches_of_any_size(batch_size: int):
    settings = (*PLAIN, "average.kind=ema", "average.decay_epochs=4", f"train.batch_size={batch_size}")
    stage = prepare(tiny_config(*settings)).student
    average = build_average(stage)
    assert isinstance(average, Ema)
    assert math.prod([average.decay(1)] * 4 * stage.loader.steps(1)) == pytest.approx(1 / math.e)


def test_of_the_two_decays_the_one_that_is_set_last_replaces_the_other():
    recipe = {"method": "at-bsl", "average": {"kind": "ema", "decay_epochs": 5}}
    decays = [
        load_config(lambda name: find_method(name).Config, recipe=tree, assignments=[text]).config.average
        for tree, text in ((recipe, "average.decay=0.9"), ({"method": "at-bsl"}, "average.decay_epochs=2"))
    ]
    assert [(own.decay, own.decay_epochs) for own in decays] == [(0.9, 0), (0.999, 2)]


def test_the_rows_of_rare_classes_average_at_their_own_pace_and_nothing_else_does():
    trainer, epochs = trained(*PLAIN, "average.kind=ema", "average.decay=0.9", "average.class_power=0.5")
    alike, _ = trained(*PLAIN, "average.kind=ema", "average.decay=0.9")
    steps = [state for epoch in epochs for state in epoch]
    counts = torch.as_tensor(trainer.stage.loader.class_counts(1)).double()
    assert counts.max() > 10 * counts.min()
    found, without = snapshot(trainer.outcome.model), snapshot(alike.outcome.model)
    for name in ("linear.weight", "linear.bias"):
        mean = steps[0][name].double()
        decay = (1 - 0.1 * (counts / counts.max()) ** 0.5).view(-1, *[1] * (mean.ndim - 1))
        for state in steps[1:]:
            mean = decay * mean + (1 - decay) * state[name].double()
        torch.testing.assert_close(found[name].double(), mean, rtol=1e-5, atol=1e-6)
    assert {name for name in found if not found[name].equal(without[name])} == {"linear.weight", "linear.bias"}


def test_a_last_layer_without_a_row_for_each_class_is_refused_a_decay_by_class(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(PgdAt, "prepare_model", headless)
    with pytest.raises(LtatError, match="class_power needs a last layer with a row for each class"):
        train(tiny_config(*EMA, "average.class_power=1"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def headless(method: PgdAt, model: Classifier) -> Classifier:
    width = model.classifier.weight.shape[1]
    model.replace_classifier(torch.nn.Sequential(torch.nn.Linear(width, 20), torch.nn.Unflatten(1, (10, 2)), Largest()))
    return model


class Largest(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=2)


def test_the_raw_network_beside_an_average_is_that_of_a_run_without_one(tmp_path: Path):
    both, without = tmp_path / "both", tmp_path / "without"
    train(tiny_config(*EMA, RAW), both)
    train(tiny_config(*PLAIN), without)
    for name in ("best", "last"):
        own, wanted = (load_file(path) for path in (both / f"raw-{name}.safetensors", without / f"{name}.safetensors"))
        assert all(value.equal(wanted[key]) for key, value in own.items())
        assert read_card(both / f"raw-{name}").extra == read_card(without / name).extra
        assert not own["conv1.weight"].equal(load_file(both / f"{name}.safetensors")["conv1.weight"])
    rows, plain = metrics(both), metrics(without)
    assert [row["raw"] for row in rows] == [{name: row[name] for name in ("select", "score", "val")} for row in plain]
    assert [row["raw"]["score"] == row["score"] for row in rows] == [True, False, False]  # the average begins in 2
    reports = [json.loads((folder / "report.json").read_text()) for folder in (both, without)]
    assert list(reports[0]) == ["best", "last", "raw-best", "raw-last"]
    for name in ("best", "last"):
        assert reports[0][f"raw-{name}"] == {**reports[1][name], "model": f"raw-{name}"}


def test_the_best_raw_epoch_is_the_first_with_its_best_score():
    scores = [None, 3.0, 5.0, 5.0, 4.0]
    rows = [{"epoch": n, "score": 9.0, "raw": {} if s is None else {"score": s}} for n, s in enumerate(scores, 1)]
    assert best_raw([{"epoch": 0, "score": 1.0}, *rows])["epoch"] == 3
    assert best_raw(rows[:1])["epoch"] == 0


def test_damaged_best_weights_of_the_raw_network_are_told_before_the_run_goes_on(tmp_path: Path):
    config = tiny_config(*EMA, RAW)
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path, reporter=Interrupting(16))
    path = tmp_path / "raw-best.json"
    card = json.loads(path.read_text())
    card["extra"]["epoch"] = 0
    path.write_text(json.dumps(card))
    (tmp_path / "last.json").unlink()
    state = saved_state(tmp_path)
    state["rows"][-1]["raw"]["score"] = 0.0  # so that the newest weights are not written as the best ones again
    write_state(tmp_path / "state.pt", state)
    with pytest.raises(LtatError, match=r"raw-best\.safetensors is of epoch 0 and the best was 1"):
        train(config, tmp_path, resume=True)
