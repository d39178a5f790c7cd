"""A run whose updates are captured is the run whose updates are not; what a graph cannot hold is not captured.

On a CPU a tape stands in for the graph: it runs the recorded operations again on the same memory.
"""

import copy
import gc
import io
import random
from dataclasses import replace
from functools import cache
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ltat.engine.captured_update import CudaRecorder, update_runner, why_update_not_captured
from ltat.engine.graphs import Graphs
from ltat.engine.host_state import Attributes, tensors_within
from ltat.engine.network import StepNetwork
from ltat.engine.self_check import NO_MEMORY, NOT_REPEATABLE, OTHER_BITS, REPLAYS, Snapshot
from ltat.errors import LtatError
from ltat.methods import METHODS, AtBsl, LossTerms, Step, find_method
from ltat.models import build_model, load_model
from ltat.training import Trainer, train
from ltat.training.environment import determinism, pick_device
from ltat.training.launch_report import describe_update
from ltat.training.reporting import Reporter
from ltat.training.run_data import RunData, load_data
from ltat.training.stage import Stage, build_stage, initial_weights
from ltat.training.trainer_state import load_state, state_of
from tests.attacks.pretended_cuda import PretendedCuda
from tests.attacks.recording import Recorder, UpdateRecorder
from tests.marks import needs_cuda
from tests.methods.making import make_method
from tests.training.tiny import complete_config, tiny_config

# Five batches and a smaller one in an epoch, and another learning rate in each.
SHORT = (
    *("data.imbalance_ratio=50", "train.batch_size=70"),
    *("train.epochs=2", "train.drop_last=false", "select.set=none", "attack.steps=0", "schedule.milestones=[2]"),
    "train.graph=true",
)


def graphs_on_a_tape(asked: bool | str, device: torch.device) -> Graphs | None:
    """As `graphs_for` a GPU."""
    return Graphs(Recorder(), checks=REPLAYS if asked == "auto" else 0) if asked else None


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> UpdateRecorder:
    """What captures in place of CUDA; what looks at a value on a CPU only does not, as on a GPU."""
    recorder = UpdateRecorder()
    monkeypatch.setattr("ltat.engine.captured_update.CudaRecorder", lambda device: recorder)
    monkeypatch.setattr("ltat.engine.network.graphs_for", graphs_on_a_tape)
    monkeypatch.setattr("ltat.training.preparing.check_graph", lambda config, device: None)
    kernel = import_module("ltat.ops.balanced_kd")
    monkeypatch.setattr(kernel, "_check_values", lambda target, log_prior: None)
    monkeypatch.setattr(kernel, "_is_one", lambda gradient: False)
    monkeypatch.setattr(F, "one_hot", lambda labels, classes: (labels[:, None] == torch.arange(classes)).long())
    return recorder


@cache
def digits() -> RunData:
    return load_data(complete_config(*SHORT))


def stage_of(*assignments: str) -> Stage:
    """A stage ready to run; its teacher, where it needs one, is a network with random weights."""
    config, data = complete_config(*SHORT, *assignments), digits()
    device, kind = pick_device(config.train.device), find_method(config.method)
    with initial_weights(0, "teacher"):
        teacher = build_model("small", num_classes=data.train.num_classes, in_channels=1).to(device)
    taught = "teacher" in kind.Config.model_fields
    return build_stage("student", config, data, device, teacher if taught else None)


def eager(stage: Stage, graph: bool | str = False) -> Stage:
    train_section = stage.config.train.model_copy(update={"graph": graph})
    return replace(stage, config=stage.config.model_copy(update={"train": train_section}))


def checked(stage: Stage) -> Stage:
    return eager(stage, "auto")


def run(stage: Stage, epochs: int = 2) -> tuple[Trainer, list[dict[str, Any]]]:
    trainer = Trainer(stage)
    timed = ("seconds", "images_per_s")
    rows = [trainer.run_epoch() for _ in range(epochs)]
    return trainer, [{name: value for name, value in row.items() if name not in timed} for row in rows]


def tensors(trainer: Trainer) -> list[Tensor]:
    """All that an update may change: the network, the momentum, the average, a teacher in training mode."""
    method = trainer.stage.method
    networks = [trainer.stage.model, trainer.outcome.model, *([method.teacher] if method.teacher else [])]
    momentum = [state["momentum_buffer"] for state in trainer.optimizer.state.values() if state]
    return [value for network in networks for value in network.state_dict().values()] + momentum


def assert_same(captured: Trainer, expected: Trainer) -> None:
    pairs = list(zip(tensors(captured), tensors(expected), strict=True))
    assert len(pairs) > 10 and all(torch.equal(one, other) for one, other in pairs)


OPTIONS = [
    "at-bsl awp.gamma=0.01 awp.warmup=1",
    "at-bsl average.kind=ema average.decay=0.5",
    "at-bsl average.kind=swa average.bn=recompute radius.share=0.3 radius.ramp_share=0.5",
    "at-bsl optim.nesterov=true optim.wd_skip_bn=true model.normalize=train attack.mode=train",
    "at-bsl optim.momentum=0 train.precision=bf16",
    "self-distill train.precision=bf16",
    "adaad+igdm train.precision=bf16 attack.steps=1",
    "pgd-at pgd_at.clean_forward=true data.sampling=balanced db.resample=per_epoch",
    "pgd-at loss.cls=ldam-drw loss.drw=0.5",
    "pgd-at loss.cls=cb",
    "pgd-at loss.cls=focal loss.gamma=0.5",
    "trades trades.third_forward=true awp.gamma=0.01",
    "taet taet.clean=0.5 taet.absent=ignore",
    "faal faal.extra_forward=true",
    "reat reat.tail_impl=per_pair reat.tail_set=count reat.tail_sign=intended",
    "dafa radius.share=0.3",
    "self-distill kd.bn=concat teacher.mode=train kd.form=kl_adv+igdm",
    "self-distill kd.bn=freeze_minus kd.mix=convex kd.alpha=0.5 loss.cls=ldam-drw loss.drw=0.5 awp.gamma=0.01",
    "ard kd.share=0.5",
    "adaad kd.share=0.5 kd.clean_forward=true",
    "rslad+igdm igdm.bn=concat igdm.clamp_minus=true teacher.mode=train",
    "ard+igdm igdm.bn=freeze_minus",
]


@pytest.mark.parametrize("settings", [*METHODS, *OPTIONS])
def test_every_method_is_captured_once_an_epoch_reads_nothing_back_and_gives_the_eager_bits(
    settings: str, recorder: UpdateRecorder
):
    stage = stage_of(*f"method={settings}".split())
    expected, expected_rows = run(eager(copy.deepcopy(stage)))
    assert recorder.eager == recorder.captured == 0
    captured, rows = run(stage)
    assert_same(captured, expected)
    assert rows == expected_rows
    assert recorder.captured == 2 and not [op for tape in recorder.tapes for op in tape.waits]


def test_an_epoch_is_captured_after_one_eager_step_and_the_first_after_three(recorder: UpdateRecorder):
    trainer = Trainer(stage_of("method=at-bsl", "train.epochs=3"))
    for epoch, eager_steps in ((1, 3), (2, 1), (3, 1)):
        recorder.eager = 0
        trainer.run_epoch()
        assert recorder.captured == epoch and recorder.eager == eager_steps + 1  # and the smaller last batch


@pytest.mark.parametrize(("step", "captured"), [(0, 4), (2, 4), (9, 2)])
def test_resuming_between_two_epochs_or_steps_ends_with_the_same_weights(
    step: int, captured: int, recorder: UpdateRecorder
):
    stage = stage_of("method=reat", "average.kind=ema", "train.epochs=3", "train.batch_size=35")
    fresh = copy.deepcopy(stage)
    whole, _ = run(stage, epochs=1)
    file = io.BytesIO()
    whole.run_epoch(lambda: torch.save(state_of(whole), file) if whole.metrics.steps == step else None)
    resumed = Trainer(fresh)
    load_state(resumed, torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    resumed.run_epoch()
    assert_same(resumed, whole)
    load_state(whole, torch.load(io.BytesIO(file.getvalue()), weights_only=True))  # into what has a graph already
    whole.run_epoch()
    assert_same(whole, resumed)
    assert recorder.captured == captured  # what is fresh takes three eager steps first, and so has no graph in the end


def test_one_batch_an_epoch_is_never_captured(recorder: UpdateRecorder):
    stage = stage_of("method=at-bsl", "train.batch_size=500", "train.epochs=5")
    assert stage.loader.steps(1) == 1
    run(stage, epochs=5)
    assert recorder.captured == 0 and recorder.eager == 5


def test_the_terms_of_a_step_are_not_overwritten_by_the_next(recorder: UpdateRecorder):
    trainer = Trainer(stage_of("method=trades"))
    trainer.network.train()
    batches = list(trainer.stage.loader.epoch(1))[:5]
    counts = trainer.class_counts(1)
    terms = [trainer.train_step(trainer.step(batch, 1, index, counts)) for index, batch in enumerate(batches)]
    kept = copy.deepcopy(terms)
    trainer.train_step(trainer.step(batches[0], 1, 5, counts))
    assert recorder.captured == 1
    for found, expected in zip(terms, kept, strict=True):
        assert not found.loss.requires_grad and found.loss.grad_fn is None
        for one, other in zip(
            (*found[:2], *found.logs.values()), (*expected[:2], *expected.logs.values()), strict=True
        ):
            assert torch.equal(one, other)
    assert len({float(found.loss) for found in terms}) == len(terms)


def remembering(in_place: bool) -> type[AtBsl]:
    """A method whose loss reads what its last step has left, in one tensor or in another every time."""

    class Remembering(AtBsl):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.scale = torch.ones(())

        def end_step(self, step: Step, terms: LossTerms) -> None:
            new = 1 + 0.1 * terms.loss
            self.scale = self.scale.copy_(new) if in_place else new

        def loss(self, step: Step) -> LossTerms:
            terms = super().loss(step)
            return terms._replace(loss=terms.loss * self.scale)

    return Remembering


def with_method(kind: type[AtBsl], *assignments: str) -> Stage:
    stage = stage_of("method=at-bsl", *assignments)
    return replace(stage, method=kind(stage.config, torch.as_tensor(stage.loader.class_counts(1), device=stage.device)))


def captured_beside_eager(kind: type[AtBsl]) -> Trainer:
    """The trainer that may capture, once it has given the bits of the one that may not."""
    captured, expected = (run(change(with_method(kind)))[0] for change in (lambda stage: stage, eager))
    assert_same(captured, expected)
    return captured


def test_a_loss_that_reads_what_steps_write_in_place_gives_the_eager_bits(recorder: UpdateRecorder):
    captured_beside_eager(remembering(in_place=True))
    assert recorder.captured == 2


class Counting(AtBsl):
    """Its loss reads a number that the hook after the step changes."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.seen: dict[str, list[int]] = {"labels": []}

    def end_step(self, step: Step, terms: LossTerms) -> None:
        self.seen["labels"].append(int(step.batch.labels[0]))

    def loss(self, step: Step) -> LossTerms:
        terms = super().loss(step)
        return terms._replace(loss=terms.loss / (1 + len(self.seen["labels"])))


@pytest.mark.parametrize("kind", [remembering(in_place=False), Counting], ids=["another tensor", "a list"])
def test_a_method_that_changes_its_attributes_runs_step_by_step_and_says_which(kind, recorder: UpdateRecorder):
    trainer = captured_beside_eager(kind)
    name = "seen" if kind is Counting else "scale"
    assert describe_update(trainer) == (
        f"step by step: {kind.__name__} changes its attribute {name} between two steps, which a replay would not see"
    )
    assert recorder.captured == 0 and recorder.eager == 12 and recorder.discarded == 1


class Late(Counting):
    """What its loss reads changes once, when a graph has been recorded already."""

    def end_step(self, step: Step, terms: LossTerms) -> None:
        self.steps = torch.add(getattr(self, "steps", torch.zeros(())), 1, out=getattr(self, "steps", None))
        if self.steps == 5:
            super().end_step(step, terms)


def test_an_attribute_that_changes_after_the_capture_ends_it_before_the_next_step(recorder: UpdateRecorder):
    trainer = captured_beside_eager(Late)
    assert "Late changes its attribute seen" in describe_update(trainer)
    assert recorder.captured == 1 and recorder.discarded == 1


class Started(AtBsl):
    """It makes an attribute in its first step and writes into that one from then on."""

    def end_step(self, step: Step, terms: LossTerms) -> None:
        before = getattr(self, "largest", None)
        self.largest = terms.loss.clone() if before is None else torch.maximum(terms.loss, before, out=before)


def test_an_attribute_made_by_the_first_step_keeps_no_graph_from_being_recorded(recorder: UpdateRecorder):
    captured_beside_eager(Started)
    assert recorder.captured == 2


class Drawing(AtBsl):
    """Its loss draws a number on the host, as mixing up images does."""

    def loss(self, step: Step) -> LossTerms:
        terms = super().loss(step)
        return terms._replace(loss=terms.loss * random.uniform(0.5, 1.5))


def test_a_loss_that_draws_on_the_host_runs_step_by_step(recorder: UpdateRecorder):
    trainers = []
    for change in (lambda stage: stage, eager):
        random.seed(0)
        trainers.append(run(change(with_method(Drawing)))[0])
    assert_same(*trainers)
    assert recorder.captured == 0 and "draws random numbers on the host" in describe_update(trainers[0])


def test_an_update_that_no_graph_can_hold_runs_step_by_step_and_says_why(recorder, monkeypatch):
    expected, _ = run(eager(stage_of("method=at-bsl")))
    monkeypatch.setattr(recorder, "record", lambda function: failing(recorder, function))
    trainer, _ = run(stage_of("method=at-bsl"))
    assert_same(trainer, expected)
    assert describe_update(trainer) == "step by step: this cannot be captured as a CUDA graph (it waits)"
    assert recorder.captured == 1 and recorder.eager == 12


def failing(recorder: UpdateRecorder, function):
    """A capture that fails after the whole update; on a GPU it has executed nothing either."""
    UpdateRecorder.record(recorder, function)
    raise LtatError("this cannot be captured as a CUDA graph (it waits); use train.graph=false")


@pytest.mark.parametrize(
    "settings",
    [
        "self-distill",
        "self-distill kd.bn=concat teacher.mode=train kd.form=kl_adv+igdm",
        "at-bsl awp.gamma=0.01 average.kind=ema average.decay=0.5 optim.wd_skip_bn=true",
        "at-bsl optim.momentum=0 train.precision=bf16",
        "taet taet.clean=0.5",
        "reat",
    ],
)
def test_a_checked_run_captures_what_gives_the_eager_bits_and_is_not_changed_by_the_check(settings, recorder):
    stage = stage_of(*f"method={settings}".split())
    expected, expected_rows = run(eager(copy.deepcopy(stage)))
    captured, rows = run(checked(stage))
    assert_same(captured, expected)
    assert rows == expected_rows and describe_update(captured) == "as one CUDA graph"
    assert recorder.captured == 2 and captured.runner._unchecked == 0


def spoiling(recorder: UpdateRecorder, spoil, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replays of ``recorder`` end with ``spoil(result)``, from the one after that many on."""
    replays: list[int] = []

    def record(function):
        replay, result = UpdateRecorder.record(recorder, function)

        def other() -> None:
            replay()
            replays.append(1)
            if len(replays) > after:
                with torch.no_grad():
                    spoil(result)

        return other, result

    monkeypatch.setattr(recorder, "record", record)


def nudge(tensor: Tensor) -> None:
    tensor.copy_(torch.nextafter(tensor, torch.full((), 9.0)))


SPOILT = {
    "a weight": lambda trainer, result: nudge(next(trainer.stage.model.parameters())),
    "the momentum": lambda trainer, result: nudge(next(iter(trainer.optimizer.state.values()))["momentum_buffer"]),
    "a statistic": lambda trainer, result: nudge(dict(trainer.stage.model.named_buffers())["bn1.running_var"]),
    "the teacher": lambda trainer, result: nudge(next(trainer.stage.method.teacher.parameters())),
    "the result": lambda trainer, result: nudge(result.loss),
}


@pytest.mark.parametrize("after", range(REPLAYS))
@pytest.mark.parametrize("what", SPOILT)
def test_a_graph_that_changes_something_else_is_given_up_and_the_run_is_the_eager_one(
    what, after, recorder, monkeypatch
):
    stage = stage_of("method=self-distill")
    expected, expected_rows = run(eager(copy.deepcopy(stage)))
    trainer = Trainer(checked(stage))
    spoiling(recorder, lambda result: SPOILT[what](trainer, result), after, monkeypatch)
    rows = [trainer.run_epoch() for _ in range(2)]
    assert_same(trainer, expected)
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected_rows]
    assert describe_update(trainer) == f"step by step: {OTHER_BITS}"
    assert recorder.captured == 1 and recorder.discarded == 1


class Drifting(AtBsl):
    """Its loss reads a number that is kept outside of the method, where no comparison of attributes sees it."""

    scale = 1.0

    def end_step(self, step: Step, terms: LossTerms) -> None:
        Drifting.scale *= 1.01

    def loss(self, step: Step) -> LossTerms:
        terms = super().loss(step)
        return terms._replace(loss=terms.loss * Drifting.scale)


def test_a_number_frozen_by_the_capture_shows_at_the_second_check(recorder: UpdateRecorder):
    trainers = []
    for change in (checked, eager):
        Drifting.scale = 1.0
        trainers.append(run(change(with_method(Drifting)))[0])
    assert_same(*trainers)
    assert describe_update(trainers[0]) == f"step by step: {OTHER_BITS}" and recorder.captured == 1


class Unsteady(AtBsl):
    """Its loss draws from a generator that is kept outside of the method."""

    drawn = torch.Generator()

    def loss(self, step: Step) -> LossTerms:
        terms = super().loss(step)
        return terms._replace(loss=terms.loss * torch.rand((), generator=Unsteady.drawn))


def test_an_update_that_does_not_repeat_itself_is_launched_step_by_step_and_says_so(recorder: UpdateRecorder):
    trainer, _ = run(checked(with_method(Unsteady)))
    assert describe_update(trainer) == f"step by step: {NOT_REPEATABLE}"
    trainers = []
    for change in (checked, eager):  # the step that was checked has taken place once, with the figures it has told
        Unsteady.drawn.manual_seed(0)
        trainer = Trainer(change(with_method(Unsteady)))
        trainer._begin_epoch(1)
        counts = trainer.class_counts(1)
        for index, batch in enumerate(list(trainer.stage.loader.epoch(1))[:4]):
            terms = trainer.train_step(trainer.step(batch, 1, index, counts))
        trainers.append((trainer, terms.loss))
    assert_same(trainers[0][0], trainers[1][0])
    assert trainers[0][0].runner.why_not == NOT_REPEATABLE and torch.equal(trainers[0][1], trainers[1][1])


class Noting(AtBsl):
    """Its loss changes an attribute in the step that is to be checked, and counts all steps in place."""

    def __init__(self, *arguments) -> None:
        super().__init__(*arguments)
        self.steps, self.noted = torch.zeros(()), []

    def loss(self, step: Step) -> LossTerms:
        if self.steps.add_(1) == 4:
            self.noted.append("the fourth")
        terms = super().loss(step)
        return terms._replace(loss=terms.loss * (1 + len(self.noted)))


def test_an_update_that_changes_an_attribute_is_not_run_a_second_time_to_be_checked(recorder: UpdateRecorder):
    trainers = [run(change(with_method(Noting)))[0] for change in (checked, eager)]
    assert_same(*trainers)
    for trainer in trainers:
        assert trainer.stage.method.noted == ["the fourth"] and trainer.stage.method.steps == 12
    assert "changes its attribute noted" in describe_update(trainers[0]) and recorder.captured == 0


def test_without_memory_for_the_check_the_update_is_launched_step_by_step(recorder, monkeypatch):
    def full(tensors, device):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("ltat.engine.captured_update.Snapshot", full)
    stage = stage_of("method=at-bsl")
    expected, _ = run(eager(copy.deepcopy(stage)))
    trainer, _ = run(checked(stage))
    assert_same(trainer, expected)
    assert describe_update(trainer) == f"step by step: {NO_MEMORY}" and recorder.captured == 0


def test_a_checked_update_that_no_graph_can_hold_runs_step_by_step_and_says_why(recorder, monkeypatch):
    expected, _ = run(eager(stage_of("method=self-distill")))
    monkeypatch.setattr(recorder, "record", lambda function: failing(recorder, function))
    trainer, _ = run(checked(stage_of("method=self-distill")))
    assert_same(trainer, expected)
    assert describe_update(trainer) == "step by step: this cannot be captured as a CUDA graph (it waits)"


def test_a_run_says_once_which_graph_it_has_given_up_and_ends_as_the_eager_run(recorder, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: lines.append(text))
    monkeypatch.setattr("ltat.engine.network.graphs_for", lambda *asked: Graphs(off_by_a_bit, checks=REPLAYS))
    spoiling(recorder, lambda result: nudge(result.loss), 0, monkeypatch)
    own = ("method=at-bsl", "train.epochs=3", "select.set=none", "train.batch_size=40")
    train(tiny_config(*own), tmp_path / "given_up")
    told = [line for line in lines if "step by step" in line]
    assert told == [f"student: {part} step by step: {OTHER_BITS}" for part in ("attack", "update")]
    monkeypatch.undo()
    train(tiny_config(*own, "train.graph=false"), tmp_path / "eager")
    found, expected = (load_model(tmp_path / name / "last").state_dict() for name in ("given_up", "eager"))
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def off_by_a_bit(function, device):
    replay, output = Recorder()(function, device)
    return lambda: (replay(), nudge(output)), output


def test_a_snapshot_puts_back_what_was_written_and_writes_nothing_else():
    written, expanded = torch.zeros(3), torch.ones(1).expand(3)  # the second cannot be written
    elsewhere = torch.zeros(3, device="meta")
    before = Snapshot([written, expanded, elsewhere, written], torch.device("cpu"))
    drawn = torch.get_rng_state()
    assert len(before.tensors) == 2 and before.holds()
    written.add_(1)
    torch.rand(1)
    assert not before.holds()
    before.put_back()
    assert before.holds() and not written.any() and torch.equal(torch.get_rng_state(), drawn)
    written.add_(1)
    before.renew()
    assert before.holds() and written.all()
    torch.rand(1)
    assert not before.holds()


def test_the_tensors_of_a_method_are_found_in_its_networks_containers_and_objects():
    net = torch.nn.BatchNorm1d(2)
    owner = SimpleNamespace(
        net=net, nested={"a": [torch.zeros(1)]}, object=SimpleNamespace(t=torch.ones(2)), odd=(i for i in ()), n=3
    )
    found = {id(tensor) for tensor in tensors_within(owner)}
    parts = (*net.parameters(), *net.buffers(), owner.nested["a"][0], owner.object.t)
    assert found == {id(tensor) for tensor in parts}


def test_an_update_is_checked_where_its_attack_is(recorder: UpdateRecorder):
    for checks in (0, REPLAYS):
        network = StepNetwork(wrapped().model, graphs=Graphs(Recorder(), checks=checks))
        runner = update_runner(network, make_method("at-bsl", counts=torch.ones(3)), lambda: (), torch.device("cpu"))
        assert runner._unchecked == checks


@pytest.mark.parametrize("value", [3, "a", [1, {"k": 2}], np.zeros(3), torch.zeros(2), torch.device("cpu"), print])
def test_an_attribute_left_alone_has_not_changed_and_another_value_has(value):
    owner = SimpleNamespace(value=value)
    before = Attributes(owner, torch.device("cpu"))
    assert before.changed(Attributes(owner, torch.device("cpu"))) is None
    owner.value = {"other": 1}
    assert before.changed(Attributes(owner, torch.device("cpu"))) == "value"
    del owner.value
    assert before.changed(Attributes(owner, torch.device("cpu"))) == "value"


def test_what_is_written_in_place_counts_only_where_a_replay_does_not_read_it():
    owner = SimpleNamespace(tensor=torch.zeros(2), array=np.zeros(2), words=["a"], module=torch.nn.Linear(1, 1))
    here, gpu = (lambda: Attributes(owner, torch.device("cpu"))), (lambda: Attributes(owner, torch.device("cuda")))
    before, elsewhere = here(), gpu()
    owner.tensor.add_(1)
    owner.module.weight.data.add_(1)
    assert before.changed(here()) is None and elsewhere.changed(gpu()) == "tensor"
    owner.words.append("b")
    assert before.changed(here()) == "words"
    before = here()
    owner.array += 1
    assert before.changed(here()) == "array"


def wrapped(precision: str = "fp32", compiled: bool = False, graph: bool = True) -> StepNetwork:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    return StepNetwork(model, precision, compiled, Graphs(Recorder()) if graph else None)


def test_what_no_graph_can_hold_is_launched_step_by_step():
    method = make_method("at-bsl", counts=torch.ones(3))
    assert why_update_not_captured(wrapped(), method) is None
    assert "no graph was asked for" in why_update_not_captured(wrapped(graph=False), method)
    assert "loss scale" in why_update_not_captured(wrapped("fp16"), method)
    assert "torch.compile" in why_update_not_captured(wrapped(compiled=True), method)
    hooked = wrapped()
    hooked.model[1].register_forward_hook(lambda module, inputs, output: output)
    assert "hooks" in why_update_not_captured(hooked, method)
    teacher = wrapped().model
    taught = make_method("rslad", counts=torch.ones(3), teacher=teacher)
    assert why_update_not_captured(wrapped(), taught) is None
    teacher.register_forward_pre_hook(lambda module, inputs: None)
    assert "hooks" in why_update_not_captured(wrapped(), taught)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("method=at-bsl train.graph=true", ["student: update as one CUDA graph"]),
        ("method=at-bsl train.graph=true train.precision=fp16", ["student: update step by step: the loss scale"]),
        ("method=at-bsl", ["student: update as one CUDA graph"]),
        ("method=at-bsl train.graph=false", []),
    ],
)
def test_a_run_says_how_its_update_is_launched(settings: str, said: list[str], recorder, tmp_path, monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(Reporter, "say", lambda self, text: lines.append(text))
    train(tiny_config(*settings.split(), "train.epochs=1", "select.set=none"), tmp_path / "run")
    updates = [line for line in lines if " update " in line]
    assert [line[: len(start)] for line, start in zip(updates, said, strict=True)] == said


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> PretendedCuda:
    cuda = PretendedCuda()
    monkeypatch.setattr("ltat.engine.graphs.torch.cuda", cuda)  # one module for all
    return cuda


GPU = torch.device("cuda", 1)
CAPTURE = ["into side", "begin in pool, thread_local", "update", "end", "out of side"]


def test_a_step_is_run_on_the_stream_that_records_and_recorded_where_nothing_else_is_freed(cuda: PretendedCuda):
    recorder = CudaRecorder(GPU)
    assert recorder.eagerly(lambda: cuda.said.append("update") or 1) == 1
    assert cuda.said == ["side waits for main", "into side", "update", "out of side", "main waits for side"]
    cuda.said.clear()
    replay, result = recorder.record(lambda: cuda.said.append("update") or gc.isenabled())
    replay()
    assert cuda.said == ["synchronize", "empty the cache", *CAPTURE, "replay"]
    assert result is False and gc.isenabled()  # the collector rests inside only


def test_the_last_graph_keeps_the_pool_until_the_next_is_recorded(cuda: PretendedCuda):
    recorder = CudaRecorder(GPU)
    recorder.record(lambda: None)
    cuda.said.clear()
    alive: list[bool] = []
    recorder.record(lambda: alive.append(cuda.graphs[0]() is not None) or cuda.said.append("update"))
    assert cuda.said == ["synchronize", *CAPTURE] and alive == [True]
    assert cuda.graphs[0]() is None and cuda.graphs[1]() is recorder.graph


def test_a_failed_capture_is_ended_and_told_in_one_sentence(cuda: PretendedCuda):
    recorder = CudaRecorder(GPU)

    def failing():
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    with pytest.raises(LtatError, match=r"\(operation not permitted\); use train\.graph=false") as caught:
        recorder.record(failing)
    assert "\n" not in str(caught.value) and cuda.said[-1] == "out of side"
    assert recorder.graph is None and gc.isenabled()


def test_an_update_on_a_cpu_is_refused_by_the_real_recorder():
    with pytest.raises(LtatError, match="the images are on cpu"):
        CudaRecorder(torch.device("cpu"))


ON_GPU = ("train.device=cuda", "train.epochs=3", "attack.steps=2")


@needs_cuda
@pytest.mark.parametrize(
    "settings",
    [
        "at-bsl train.precision=bf16 average.kind=ema awp.gamma=0.01 awp.warmup=1",
        "pgd-at pgd_at.clean_forward=true loss.cls=ldam-drw loss.drw=0.5",
        "self-distill train.precision=bf16",
        "self-distill kd.bn=freeze_minus teacher.mode=train loss.cls=cb",
        "taet taet.clean=0.4",
        "faal",
        "reat",
        "robal train.precision=bf16",
        "dafa awp.gamma=0.01",
        "ard",
        "rslad+igdm igdm.bn=concat",
    ],
)
def test_a_captured_update_on_a_gpu_gives_the_eager_bits(settings: str, monkeypatch: pytest.MonkeyPatch):
    recorded = []
    real = CudaRecorder.record
    monkeypatch.setattr(CudaRecorder, "record", lambda self, function: recorded.append(1) or real(self, function))
    stage = stage_of(*f"method={settings}".split(), *ON_GPU)
    with determinism(True):
        expected, expected_rows = run(eager(copy.deepcopy(stage)), epochs=3)
        assert not recorded
        captured, rows = run(stage, epochs=3)
    assert_same(captured, expected)
    assert rows == expected_rows and len(recorded) == 3


@needs_cuda
def test_captures_of_later_epochs_on_a_gpu_take_no_more_memory():
    trainer, _ = run(stage_of("method=self-distill", *ON_GPU, "train.epochs=22"), epochs=2)
    before = torch.cuda.memory_reserved()
    for _ in range(6):
        trainer.run_epoch()
    assert (
        torch.cuda.memory_reserved() <= before + 24 * 2**20
    )  # a workspace or two of the libraries; an update holds more


class Reading(AtBsl):
    """A method that reads a value of the device in its loss."""

    def loss(self, step: Step) -> LossTerms:
        terms = super().loss(step)
        return terms._replace(loss=terms.loss * (2 if terms.loss.item() > 1e9 else 1))


@needs_cuda
def test_on_a_gpu_an_update_that_reads_a_value_back_runs_step_by_step():
    captured, expected = (run(change(with_method(Reading, *ON_GPU)))[0] for change in (lambda stage: stage, eager))
    assert "cannot be captured" in describe_update(captured)
    assert_same(captured, expected)


@needs_cuda
@pytest.mark.parametrize("method", ["self-distill train.precision=bf16", "at-bsl awp.gamma=0.01"])
def test_a_checked_run_on_a_gpu_is_captured_and_gives_the_eager_bits(method: str):
    stage = stage_of(*f"method={method}".split(), *ON_GPU)
    with determinism(True):
        expected, expected_rows = run(eager(copy.deepcopy(stage)), epochs=3)
        captured, rows = run(checked(stage), epochs=3)
    assert_same(captured, expected)
    assert rows == expected_rows and describe_update(captured) == "as one CUDA graph"
    assert captured.network.graphs.why_not is None
