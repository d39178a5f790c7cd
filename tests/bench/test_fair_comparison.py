"""What is compared does the same work, and a row says what was measured."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bench import _harness, affine_relu, attack, attack_step, balanced_kd, pgd_step, plain_at_bsl, relu_grad_add
from bench._harness import Spread, append, compare
from bench._training import SETTINGS, Workload, make_plain, make_trainer, random_split
from bench.plain_at_bsl import Recipe
from ltat import ops
from ltat.data import Batch
from ltat.engine import graphs, trial
from ltat.engine.working_copy import WorkingCopy
from ltat.models import build_model

CPU = torch.device("cpu")


@pytest.fixture
def workload() -> Workload:
    settings = ("data.name=cifar10", "model.name=small", "train.batch_size=8", "attack.steps=3", "attack.start=zero")
    return Workload(random_split((20, 10, 5), size=8), settings, CPU)


def test_the_plain_loop_and_the_exact_trainer_make_the_same_step(workload: Workload, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "randn_like", torch.zeros_like)  # as attack.start=zero
    trainer, plain = make_trainer(workload, SETTINGS["ltat fp32"]), make_plain(workload)
    plain.network.load_state_dict(trainer.stage.model.state_dict())
    trainer.network.train()
    x, y = torch.rand(8, 3, 8, 8), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    terms = trainer.train_step(trainer.step(Batch(x, y, torch.arange(8)), 1, 0, trainer.class_counts(1)))
    loss = plain_at_bsl.train_step(plain.network, plain.optimizer, x, y, plain.log_prior, plain.recipe)
    torch.testing.assert_close(terms.loss.detach(), loss, rtol=1e-5, atol=1e-6)
    theirs = plain.network.state_dict()
    for name, value in trainer.stage.model.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


def test_the_plain_loop_is_the_published_formula():
    # A linear network in float64: the attack is x + the sign of W^T (p - onehot), the loss has the log counts added.
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3, bias=False)).double()
    weight, x, y = network[1].weight.detach().clone(), torch.rand(4, 3, 2, 2).double(), torch.tensor([0, 1, 2, 2])
    recipe, log_prior = Recipe(steps=1, step=1.0), torch.tensor([100.0, 10.0, 1.0]).double().log()
    p = (x.flatten(1) @ weight.T).softmax(1)
    sign = torch.sign((p - F.one_hot(y, 3)) @ weight).reshape(x.shape)
    x_adv = (x + 8 / 255 * sign).clamp(0, 1)
    logits = x_adv.flatten(1) @ weight.T + log_prior
    optimizer = plain_at_bsl.make_optimizer(network, recipe)
    loss = plain_at_bsl.train_step(network, optimizer, x, y, log_prior, recipe)
    expected = (logits.logsumexp(1) - logits[torch.arange(4), y]).mean()
    assert float(loss) == pytest.approx(float(expected), abs=2e-3)  # the start noise of 0.001 may turn a sign near 0
    q = logits.softmax(1) - F.one_hot(y, 3)
    moved = weight - 0.1 * (q.T @ x_adv.flatten(1) / 4 + 5e-4 * weight)
    torch.testing.assert_close(network[1].weight.detach(), moved, rtol=0, atol=2e-3)


def test_the_plain_loaders_batches_are_the_images_in_the_unit_interval():
    split = random_split((4, 4), size=8)
    loader = plain_at_bsl.make_loader(split.images, split.labels, Recipe(batch_size=8, pad=0, flip=False), 0)
    ((images, labels),) = list(loader)
    wanted = {bytes(image) for image in split.images}
    found = {(255 * image).round().byte().permute(1, 2, 0).numpy().tobytes() for image in images}
    assert found == wanted and sorted(labels.tolist()) == sorted(split.labels.tolist())


def test_every_attack_of_the_bench_stays_in_the_ball_and_hurts():
    torch.manual_seed(0)
    model = build_model("small", num_classes=10).eval()
    x, y = torch.rand(16, 3, 16, 16), torch.randint(10, (16,))
    recipe = Recipe(steps=3)
    runs = {"plain": lambda: plain_at_bsl.pgd_attack(model, x, y, recipe), **attack.ltat_runs(model, x, y, recipe)}
    clean = F.cross_entropy(model(x), y)
    for name, run in runs.items():
        x_adv = run()
        assert (x_adv - x).abs().max() <= 8 / 255 + 1e-6 and x_adv.min() >= 0 and x_adv.max() <= 1, name
        assert F.cross_entropy(model(x_adv), y) > clean, name


def test_the_attacked_networks_copy_is_made_once_as_in_a_training(monkeypatch: pytest.MonkeyPatch):
    made: list[object] = []

    class Counted(WorkingCopy):
        def __init__(self, *given: object) -> None:
            made.append(given)
            super().__init__(*given)

    monkeypatch.setattr(trial, "WorkingCopy", Counted)
    x, y = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    runs = attack.ltat_runs(build_model("small", num_classes=10).eval(), x, y, Recipe(steps=1))
    for _ in range(2):
        runs["ltat bf16"]()
    assert len(made) == 1


def test_candidates_take_turns_and_warm_up_is_not_counted():
    calls: list[str] = []
    runs = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    found = compare(runs, CPU, rounds=3, target=0.0, warm_up=2)
    assert calls == ["a", "a", "b", "b"] + ["a", "b"] * 3
    assert found.keys() == {"a", "b"}


class FakeGpu:
    """Stands in for torch.cuda: the host takes ``launching`` cycles for a call, the device 2 ms for each."""

    def __init__(self, launching: int = 0, reads_back: bool = False) -> None:
        self.launching, self.reads_back = launching, reads_back
        self.held, self.begun = 0, True
        self.said: list[object] = []

    def synchronize(self) -> None:
        self.said.append("wait")

    def _sleep(self, cycles: int) -> None:
        self.held, self.begun = cycles, False
        self.said.append(cycles)

    def run(self) -> None:
        self.said.append("run")
        self.held -= self.launching
        self.begun = self.begun or self.reads_back or self.held <= 0

    def Event(self, enable_timing: bool) -> SimpleNamespace:
        calls = self.said.count
        return SimpleNamespace(
            record=lambda: self.said.append("event"),
            query=lambda: self.begun,
            synchronize=lambda: None,
            elapsed_time=lambda end: 2.0 * (calls("run") / (calls("event") // 2)),
        )


def device_time(gpu: FakeGpu, repeats: int, monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(torch, "cuda", gpu)
    return _harness.device_seconds(gpu.run, repeats)


def test_an_operations_launches_are_queued_before_the_device_may_begin(monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu(launching=1000)
    assert device_time(gpu, 3, monkeypatch) == pytest.approx(2e-3)
    assert gpu.said == ["wait", _harness.HOLDS[0], "event", "run", "run", "run", "event"]


def test_no_more_is_queued_than_a_queue_can_hold(monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu()
    device_time(gpu, 5000, monkeypatch)
    assert gpu.said.count("run") <= 20


def test_a_host_that_is_slow_is_given_more_time_to_launch(monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu(launching=_harness.HOLDS[0])
    assert device_time(gpu, 3, monkeypatch) == pytest.approx(2e-3)
    assert [said for said in gpu.said if isinstance(said, int)] == list(_harness.HOLDS[:2])


def test_what_reads_a_value_back_is_measured_and_is_no_endless_wait(monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu(reads_back=True)
    assert device_time(gpu, 3, monkeypatch) == pytest.approx(2e-3)
    assert gpu.said.count("run") == 3 * len(_harness.HOLDS)


@pytest.mark.parametrize(("compared", "held"), [(compare, False), (_harness.compare_operations, True)])
def test_only_single_operations_are_timed_without_their_launches(compared, held, monkeypatch: pytest.MonkeyPatch):
    gpu = FakeGpu(launching=1)
    monkeypatch.setattr(torch, "cuda", gpu)
    compared({"ours": gpu.run}, torch.device("cuda"), rounds=1)
    assert any(isinstance(said, int) for said in gpu.said) is held


@pytest.mark.parametrize("bench", [pgd_step, balanced_kd])
def test_an_operations_mode_of_the_compiler_is_chosen_by_the_clock_it_is_measured_with(
    bench, monkeypatch: pytest.MonkeyPatch
):
    clocks = []
    chosen = lambda build, *rest, comparison: (clocks.append(comparison), list)[1]  # noqa: E731
    monkeypatch.setattr(bench, "best_compiled", chosen)
    monkeypatch.setattr(bench, "compare_operations", lambda *given: None)
    monkeypatch.setattr(bench, "append", lambda *given: None)
    bench.bench_case(*(((2, 3, 4, 4), torch.float32, "linf") if bench is pgd_step else ((2, 5), "kl_adv")), CPU, 1)
    assert clocks == [bench.compare_operations]


def test_percentiles_lie_within_what_was_measured():
    assert Spread.of([3.0]) == (3.0, 3.0, 3.0)
    spread = Spread.of([1.0, 2.0, 9.0])
    assert spread.median == 2.0 and 1.0 <= spread.p20 <= 2.0 <= spread.p80 <= 9.0


def test_rows_go_where_they_are_reported_with_machine_and_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(_harness.RESULTS_VARIABLE, str(tmp_path / "rows"))
    monkeypatch.setenv(_harness.COMMIT_VARIABLE, "abc1234")
    for _ in range(2):
        append("op", "a case", CPU, {"ours": Spread(2e-6, 1e-6, 3e-6)}, {"ours": 64})
    with (tmp_path / "rows" / "op.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 and rows[0] == rows[1]
    told = {name: rows[0][name] for name in ("commit", "case", "candidate", "unit", "median", "p20", "p80", "bytes")}
    assert list(told.values()) == ["abc1234", "a case", "ours", "us", "2", "1", "3", "64"]
    assert rows[0]["hardware"] and rows[0]["torch"] == torch.__version__


def test_random_images_are_as_many_as_asked_for():
    split = random_split((5, 3, 1))
    assert np.bincount(split.labels).tolist() == [5, 3, 1] and split.images.std() > 60


def test_a_rival_that_fails_costs_its_own_row_alone(capsys: pytest.CaptureFixture[str]):
    def fails() -> None:
        raise RuntimeError("no compiler\nand much more")

    assert _harness.tried("compile", lambda: fails) == {}
    assert "compile is left out: RuntimeError: ['no compiler']" in capsys.readouterr().out
    assert list(_harness.tried("eager", lambda: list)) == ["eager"]


@pytest.mark.parametrize("good_calls", [0, graphs.WARM_UP, graphs.WARM_UP + 1])
def test_an_update_that_cannot_be_recorded_or_replayed_costs_its_own_row_alone(good_calls: int):
    calls = iter(range(good_calls))  # as one that warms up, and fails when it is recorded, or replayed
    assert _harness.tried("graph", lambda: lambda: next(calls)) == {}


def test_a_graph_is_captured_as_ltat_captures_and_its_replay_is_what_is_timed(monkeypatch: pytest.MonkeyPatch):
    def replay() -> None: ...

    seen = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(graphs, "capture_on_cuda", lambda *given: (seen.append(given), (replay, None))[1])
    assert _harness.graphed(list) is replay and seen == [(list, torch.device("cuda", 3))]


@pytest.mark.parametrize("form", ["igdm", "kl_adv"])
def test_the_eager_loss_of_the_bench_is_the_operators(form: str):
    torch.manual_seed(0)
    logits = {name: torch.randn(6, 4) for name in balanced_kd.LOGITS}
    given = {**logits, "form": form, "target": torch.randint(4, (6,)), "log_prior": torch.linspace(3, 0, 4)}
    torch.testing.assert_close(balanced_kd.eager(**given), ops.balanced_kd(**given).loss)


def test_the_eager_step_of_the_bench_is_the_operators():
    x_adv, grad, x = pgd_step.make_inputs((2, 3, 4, 4), torch.float32, CPU)
    wanted = ops.pgd_step(x_adv, grad, x, **pgd_step.SETTINGS)
    torch.testing.assert_close(pgd_step.eager(x_adv, grad, x), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_eager_relu_passes_of_the_bench_are_the_operators(dtype: torch.dtype):
    inputs = relu_grad_add.make_inputs((2, 8, 4, 4), dtype, CPU)
    assert torch.equal(relu_grad_add.eager(*inputs), ops.relu_grad_add(*inputs))
    norm, x = affine_relu.make_inputs((2, 8, 4, 4), dtype, CPU)
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    got = ops.affine_relu(x, scale, norm.bias - norm.running_mean * scale)
    torch.testing.assert_close(affine_relu.eager(norm, x), got)


@pytest.mark.parametrize(("bench", "case", "body"), [(pgd_step, "linf", "eager"), (balanced_kd, "kl_adv", "twin")])
def test_what_is_compiled_is_the_quicker_form(bench, case: str, body: str, monkeypatch: pytest.MonkeyPatch):
    measured, ran = {}, []
    form = "balanced_kd_twin" if bench is balanced_kd else body
    real = getattr(bench, form)
    monkeypatch.setattr(bench, form, lambda *args, **kwargs: (ran.append(form), real(*args, **kwargs))[1])
    monkeypatch.setattr(bench, "best_compiled", lambda build, *rest, **clock: build(lambda function: function))
    monkeypatch.setattr(bench, "compare_operations", lambda candidates, *rest: measured.update(candidates))
    monkeypatch.setattr(bench, "append", lambda *rest: None)
    args = ((2, 3, 4, 4), torch.float32, case) if bench is pgd_step else ((2, 5), case)
    bench.bench_case(*args, CPU, 1)
    ran.clear()
    measured["compile"]()
    assert ran == [form]


def test_the_attack_steps_candidates_compute_the_same_gradient_and_only_one_fuses():
    torch.manual_seed(0)
    model, x = build_model("preactresnet18", num_classes=5).eval().requires_grad_(False), torch.rand(2, 3, 16, 16)
    with attack_step.separate_operations():
        separate = WorkingCopy(model, torch.float32)
    fused = WorkingCopy(model, torch.float32)
    assert separate.fused == 0 and fused.fused > 0
    gradients = [attack_step.step_of(work, x)() for work in (separate, fused)]
    assert (gradients[0] - gradients[1]).norm() < 5e-3 * gradients[0].norm()
    moved = []
    for run in (
        attack_step.convolutions_of(separate, x),
        *(attack_step.step_of(work, x) for work in (fused, separate)),
    ):
        with attack_step.Traffic() as traffic:
            run()
        moved.append(traffic.nbytes)
    assert moved == sorted(moved) and moved[1] < 0.6 * moved[2]
