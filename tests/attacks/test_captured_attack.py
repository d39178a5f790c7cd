"""The K steps as one graph give what they give one by one, whatever changes between two attacks."""

import copy
import gc
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from ltat.attacks import ThreatModel, cross_entropy, pgd
from ltat.attacks.captured import why_not_captured
from ltat.attacks.objectives import dlr
from ltat.data import Batch
from ltat.engine.graphs import Graphs, capture_on_cuda, graphs_for
from ltat.engine.graphs import record as record_graph
from ltat.engine.network import StepNetwork
from ltat.engine.self_check import NOT_REPEATABLE, OTHER_BITS, REPLAYS, same_bits
from ltat.errors import LtatError
from ltat.methods.objectives import INNER_LOSSES, inner_objective
from ltat.models import build_model
from tests.attacks.pretended_cuda import PretendedCuda
from tests.attacks.recording import Recorder
from tests.marks import needs_cuda

COUNTS = torch.tensor([50.0, 20.0, 5.0])
FORMS = [("fp32", False), ("fp32", True), ("bf16", False), ("bf16", True)]


def networks(device: str = "cpu", precision: str = "fp32", capture=None, name: str = "small"):
    """A network in its wrapper with graphs, the recorder behind them, and a teacher."""
    torch.manual_seed(0)
    model, teacher = (build_model(name, num_classes=3, in_channels=3).to(device) for _ in range(2))
    with torch.no_grad():
        for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.3, 0.3)
            norm.running_var.uniform_(0.5, 2)
    recorder = capture or Recorder()
    wrapped = StepNetwork(model.train(), precision, graphs=Graphs(recorder))
    return wrapped, recorder, teacher.eval().requires_grad_(False)


def batch_of(n: int, seed: int = 0, size: int = 8, device: str = "cpu") -> Batch:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, size, size, generator=drawn).to(memory_format=torch.channels_last)
    y = torch.randint(3, (n,), generator=drawn)
    return Batch(x.to(device), y.to(device), torch.arange(n, device=device))


def attack(network: nn.Module, batch: Batch, objective=cross_entropy, **how) -> Tensor:
    settings = {"threat": ThreatModel(eps=0.1), "steps": 3, "step_size": 0.04, "validate": False}
    generator = torch.Generator().manual_seed(7)
    settings["precision"] = network.precision
    return pgd(network, batch.images, batch.labels, objective=objective, generator=generator, **settings | how)


def eager(network: StepNetwork, batch: Batch, objective=cross_entropy, **how) -> Tensor:
    """The same on the same network, one step after the other."""
    return attack(StepNetwork(network.model, network.precision), batch, objective, **how)


def objective_of(name: str, network: nn.Module, batch: Batch, teacher: nn.Module):
    return inner_objective(name, network, batch, COUNTS.log().to(batch.images.device), teacher)


def changed(model: nn.Module) -> None:
    """As an optimiser and a training-mode forward change it: in place."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.add_(0.1)


@pytest.mark.parametrize(("precision", "fold"), FORMS)
@pytest.mark.parametrize("name", INNER_LOSSES)
def test_every_inner_loss_is_captured_once_and_gives_the_eager_bits(name: str, precision: str, fold: bool):
    network, recorder, teacher = networks(precision=precision)
    for seed in range(3):
        batch = batch_of(6, seed)
        objective = objective_of(name, network, batch, teacher)
        expected = eager(network, batch, objective, fold=fold)
        assert torch.equal(attack(network, batch, objective, fold=fold), expected)
        assert not torch.equal(expected, batch.images)
        changed(network.model)
    assert recorder.captured == 1


@pytest.mark.parametrize(("precision", "fold"), FORMS)
@pytest.mark.parametrize("name", INNER_LOSSES)
def test_a_captured_attack_reads_nothing_back_and_draws_nothing(name: str, precision: str, fold: bool):
    network, recorder, teacher = networks(precision=precision)
    batch = batch_of(6)
    attack(network, batch, objective_of(name, network, batch, teacher), fold=fold)
    called = {func.overloadpacket.__name__ for func, *_ in recorder.tapes[0].calls}
    assert not recorder.tapes[0].waits and "convolution_backward" in called


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_radii_and_steps_per_image_are_those_of_the_attack_at_hand(norm: str):
    network, recorder, _ = networks()
    for scale in (torch.linspace(0.5, 1.5, 6), torch.linspace(1.5, 0.5, 6)):
        how = {"threat": ThreatModel(norm=norm, eps=0.1 * scale), "step_size": 0.04 * scale}
        batch = batch_of(6)
        assert torch.equal(attack(network, batch, **how), eager(network, batch, **how))
    assert recorder.captured == 1


def test_no_result_is_overwritten_by_the_next_attack():
    network, _, _ = networks()
    first = attack(network, batch_of(6))
    kept = first.clone()
    second = attack(network, batch_of(6, seed=1))
    assert torch.equal(first, kept) and not torch.equal(first, second)
    assert first.stride() == batch_of(6).images.stride() and not first.requires_grad


@pytest.mark.parametrize(
    "other",
    [
        {"steps": 2},
        {"step_size": 0.02},
        {"threat": ThreatModel(eps=0.05)},
        {"threat": ThreatModel(norm="l2", eps=0.1)},
        {"threat": ThreatModel(eps=0.1, box=(0.2, 0.8))},
        {"fold": True},
    ],
)
def test_a_number_frozen_at_the_capture_is_captured_anew(other: dict):
    network, recorder, _ = networks()
    batch = batch_of(6)
    for how in ({}, other, {}, other):
        assert torch.equal(attack(network, batch, **how), eager(network, batch, **how))
    assert recorder.captured == 2


def test_another_shape_or_layout_is_captured_anew_and_few_are_kept():
    network, recorder, _ = networks()
    plain = batch_of(6)._replace(images=batch_of(6).images.contiguous())
    for batch in (batch_of(6), batch_of(2), batch_of(6, seed=1), batch_of(2, seed=1), plain):
        assert torch.equal(attack(network, batch), eager(network, batch))
    attack(network, batch_of(6))
    assert recorder.captured == 3
    attack(network, batch_of(4))  # in place of that of two images, used least recently
    attack(network, batch_of(6))
    assert recorder.captured == 4 and len(network.graphs) == 3
    attack(network, batch_of(2))
    assert recorder.captured == 5


def test_another_objective_or_second_network_is_captured_anew():
    network, recorder, teacher = networks()
    batch, other = batch_of(6), copy.deepcopy(teacher)
    changed(other)
    for objective in (
        cross_entropy,
        dlr,
        partial(through, module=nn.Identity().eval()),
        partial(through, module=nn.Tanh().eval()),
        objective_of("kl-self", network, batch, teacher),
        objective_of("kl-adv", network, batch, teacher),
        objective_of("kl-adv", network, batch, other),
    ):
        assert torch.equal(attack(network, batch, objective), eager(network, batch, objective))
    assert recorder.captured == 7


def through(logits: Tensor, y: Tensor, x_adv: Tensor, module: nn.Module) -> Tensor:
    return cross_entropy(module(logits), y, x_adv)


def powered(logits: Tensor, y: Tensor, x_adv: Tensor, exponent: float) -> Tensor:
    return cross_entropy(logits, y, x_adv) ** exponent


def test_a_number_bound_by_the_objective_is_frozen_and_a_tensor_is_an_input():
    network, recorder, _ = networks()
    batch = batch_of(6)
    for objective in [partial(powered, exponent=exponent) for exponent in (2, 2.0, 3.0, 2)]:
        assert torch.equal(attack(network, batch, objective), eager(network, batch, objective))
    assert recorder.captured == 3
    for objective in [partial(weighted, weights=torch.tensor([1.0, 2.0, last])) for last in (3.0, -3.0)]:
        assert torch.equal(attack(network, batch, objective), eager(network, batch, objective))
    assert recorder.captured == 4


def test_a_tensor_on_another_device_than_the_network_is_never_frozen_into_a_graph():
    network, _, _ = networks()
    elsewhere = partial(weighted, weights=torch.ones(3, device="meta"))
    assert "weights on meta; move it to the network's cpu" in why_not_captured(network, elsewhere)


@pytest.mark.parametrize("fold", [True, False])
def test_weights_that_have_moved_are_captured_anew(fold: bool):
    network, recorder, _ = networks()
    batch = batch_of(6)
    attack(network, batch, fold=fold)
    moved = network.model.classifier
    with torch.no_grad():
        moved.weight = nn.Parameter(moved.weight.clone().neg_())
    assert torch.equal(attack(network, batch, fold=fold), eager(network, batch, fold=fold))
    assert recorder.captured == 2


def test_a_new_working_copy_is_captured_anew():
    network, recorder, _ = networks()
    batch = batch_of(6)
    attack(network, batch, fold=True)
    network._copy = None
    attack(network, batch, fold=True)
    assert recorder.captured == 2


def test_a_label_without_a_class_is_refused_also_by_a_replay():
    network, _, _ = networks()
    batch = batch_of(6)
    attack(network, batch, validate=True)
    batch.labels[0] = 3
    with pytest.raises(LtatError, match="label 3"):
        attack(network, batch, validate=True)


def in_a_closure(logits_weight: Tensor):
    return lambda logits, y, x_adv: cross_entropy(logits * logits_weight, y, x_adv)


def weighted(logits: Tensor, y: Tensor, x_adv: Tensor, weights) -> Tensor:
    return cross_entropy(logits * torch.as_tensor(weights), y, x_adv)


def applying(logits: Tensor, y: Tensor, x_adv: Tensor, inner) -> Tensor:
    return inner(logits, y, x_adv)


def first_bound(weights: Tensor, logits: Tensor, y: Tensor, x_adv: Tensor) -> Tensor:
    return weighted(logits, y, x_adv, weights)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"mode": "train_frozen_stats"}, "mode=train_frozen_stats"),
        ({"steps": 0}, "0 steps"),
        ({"objective": in_a_closure(torch.ones(3))}, "closure"),
        ({"objective": partial(in_a_closure(torch.ones(3)))}, "closure"),
        ({"objective": partial(weighted, weights=[1.0, 2.0, 3.0])}, "binds weights, a list"),
        ({"objective": partial(applying, inner=in_a_closure(torch.ones(3)))}, "binds inner, a function"),
        ({"objective": partial(first_bound, torch.ones(3))}, "by position"),
    ],
)
def test_what_no_graph_can_hold_runs_step_by_step(how: dict, why: str):
    network, recorder, _ = networks()
    asked = {name: value for name, value in how.items() if name != "objective"}
    assert why in why_not_captured(network, how.get("objective", cross_entropy), **asked)
    batch = batch_of(6)
    assert torch.equal(attack(network, batch, **how), eager(network, batch, **how))
    assert recorder.captured == 0


def test_a_second_network_in_training_mode_is_never_replayed():
    network, _, teacher = networks()
    assert why_not_captured(network, partial(through, module=teacher)) is None
    assert "training mode" in why_not_captured(network, partial(through, module=teacher.train()))
    teacher.eval().register_forward_hook(lambda module, inputs, output: output)
    assert "hooks" in why_not_captured(network, partial(through, module=teacher))


def test_a_network_that_may_do_anything_runs_step_by_step():
    graphs = Graphs(Recorder())
    plain = StepNetwork(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), graphs=graphs)
    assert "not of ltat.models" in why_not_captured(plain, cross_entropy)
    hooked, _, _ = networks()
    hooked.model.conv1.register_forward_hook(lambda module, inputs, output: output * 0)
    assert "hooks" in why_not_captured(hooked, cross_entropy)
    assert torch.equal(attack(plain, batch_of(4)), eager(plain, batch_of(4))) and len(graphs) == 0


def test_a_captured_attack_leaves_the_network_as_it_was():
    network, _, _ = networks()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    attack(network, batch_of(6), fold=True)
    assert network.training and all(p.requires_grad and p.grad is None for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_copies_of_a_wrapper_begin_without_captured_graphs():
    network, _, _ = networks(capture=record)
    attack(network, batch_of(6))
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert len(twin.graphs) == twin.graphs.checks == 0 and twin.graphs.size == 3 and twin.graphs.capture is record
        assert torch.equal(attack(twin, batch_of(6)), attack(network, batch_of(6)))
        twin.model.classifier.weight.data.neg_()
        assert torch.equal(attack(network, batch_of(6)), eager(network, batch_of(6)))


def record(function, device):
    return Recorder()(function, device)


def test_a_failed_capture_keeps_nothing():
    def failing(function, device):
        raise LtatError("no")

    graphs = Graphs(failing)
    with pytest.raises(LtatError):
        graphs.run(torch.neg, (torch.ones(2),), "key")
    assert len(graphs) == 0


def test_images_on_a_cpu_are_refused_by_the_real_capture():
    with pytest.raises(LtatError, match="the images are on cpu"):
        capture_on_cuda(lambda: torch.ones(1), torch.device("cpu"))


def test_a_capture_is_warmed_up_on_its_own_stream_and_heeds_only_its_own_thread(monkeypatch: pytest.MonkeyPatch):
    cuda = PretendedCuda()
    monkeypatch.setattr("ltat.engine.graphs.torch.cuda", cuda)
    replay, output = capture_on_cuda(lambda: cuda.said.append("run") or "output", torch.device("cuda", 1))
    replay()
    warm_up = ["side waits for main", "into side", "run", "run", "run", "out of side", "main waits for side"]
    capture = ["synchronize", "into side", "begin in pool, thread_local", "run", "end", "out of side"]
    assert cuda.said == ["into cuda:1", *warm_up, *capture, "out of cuda:1", "replay"] and output == "output"


def test_a_capture_that_fails_is_ended_and_another_made_that_ends_well(monkeypatch: pytest.MonkeyPatch):
    cuda = PretendedCuda()
    monkeypatch.setattr("ltat.engine.graphs.torch.cuda", cuda)

    def failing():
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    with pytest.raises(LtatError, match=r"\(operation not permitted\); use train\.graph=false") as caught:
        record_graph(failing, cuda.Stream(None))
    assert "\n" not in str(caught.value) and gc.isenabled()
    begun, nothing = "begin in pool, thread_local", "begin in None, global"
    assert cuda.said == ["into side", begun, "end", nothing, "end", "out of side"]


@pytest.mark.parametrize("refused", ["begin", "end"])
@pytest.mark.parametrize("fixed", [False, True], ids=["torch counts it still", "torch has ended it"])
def test_a_capture_that_cannot_be_ended_leaves_the_allocator_in_no_capture(refused: str, fixed: bool, monkeypatch):
    cuda = PretendedCuda(refused)
    monkeypatch.setattr("ltat.engine.graphs.torch.cuda", cuda)

    def end_allocation(device: int, pool: str) -> None:
        cuda.said.append(f"end allocation on {device} to {pool}")
        if fixed:
            raise RuntimeError("not currently recording to this pool")

    monkeypatch.setattr("torch._C._cuda_endAllocateToPool", end_allocation, raising=False)
    with pytest.raises(LtatError, match=r"\(the capture was invalidated\)"):
        record_graph(lambda: None, cuda.Stream(None))
    nothing = ["begin in None, global", "end"]
    assert cuda.said[-4:] == ["end allocation on 1 to pool", *nothing, "out of side"] and gc.isenabled()
    cuda.refused = None
    record_graph(lambda: None, cuda.Stream(None))  # and the next one is captured
    assert cuda.said[-4:] == ["into side", "begin in pool, thread_local", "end", "out of side"]


def checking(capture=None) -> StepNetwork:
    """A network whose first captured attacks are compared with eager ones."""
    network, _, _ = networks()
    network.graphs = Graphs(capture or Recorder(), checks=REPLAYS)
    return network


def spoilt(change, after: int = 0):
    """A capture whose replays give ``change(output)``, from the one after that many on."""
    replays = []

    def capture(function, device):
        replay, output = Recorder()(function, device)

        def other() -> None:
            replay()
            replays.append(1)
            if len(replays) > after:
                output.copy_(change(output))

        return other, output

    return capture


class Notes(nn.Module):
    def __init__(self, runs: list[int]) -> None:
        super().__init__()
        self.runs = runs


def noting(logits: Tensor, y: Tensor, x_adv: Tensor, runs: Notes) -> Tensor:
    runs.runs.append(1)
    return cross_entropy(logits, y, x_adv)


def test_the_first_replays_are_compared_with_the_attack_itself_and_the_later_ones_are_not():
    network, runs = checking(), []
    objective = partial(noting, runs=Notes(runs).eval())
    for seed, expected in enumerate((6, 9, 9)):  # three steps to capture, and three at each of two checks
        batch = batch_of(6, seed)
        found = attack(network, batch, objective)
        assert len(runs) == expected
        assert torch.equal(found, eager(network, batch)) and not torch.equal(found, batch.images)
    assert network.graphs.why_not is None and len(network.graphs) == 1


@pytest.mark.parametrize("after", range(REPLAYS))
def test_a_graph_of_other_bits_is_given_up_and_the_eager_attack_returned(after: int):
    network = checking(spoilt(lambda output: torch.nextafter(output, torch.ones(())), after))
    for seed in range(3):
        batch = batch_of(6, seed)
        assert torch.equal(attack(network, batch), eager(network, batch))
    assert network.graphs.why_not == OTHER_BITS == why_not_captured(network, cross_entropy)
    assert len(network.graphs) == 0


def test_a_value_frozen_by_the_capture_shows_at_the_second_check():
    graphs, factor = Graphs(Recorder(), checks=REPLAYS), torch.ones(1)
    for value in (1.0, 2.0):
        frozen = factor * value  # another tensor every time, which is no input of the graph
        found = graphs.run(lambda x, frozen=frozen: x * frozen, (torch.ones(2),), "key")
        assert torch.equal(found, torch.full((2,), value))
    assert graphs.why_not == OTHER_BITS


def test_an_attack_that_does_not_repeat_itself_is_launched_step_by_step_and_says_how_to_capture_it():
    drawn = torch.Generator().manual_seed(0)
    graphs = Graphs(Recorder(), checks=REPLAYS)
    graphs.run(lambda x: x + torch.rand(2, generator=drawn), (torch.ones(2),), "key")
    assert graphs.why_not == NOT_REPEATABLE
    assert "train.deterministic=true" in NOT_REPEATABLE and "train.graph=true" in NOT_REPEATABLE


def test_a_capture_that_fails_under_a_check_is_no_error():
    def failing(function, device):
        raise LtatError("this cannot be captured as a CUDA graph (it waits); use train.graph=false")

    network, batch = checking(failing), batch_of(6)
    assert torch.equal(attack(network, batch), eager(network, batch))
    assert network.graphs.why_not == "this cannot be captured as a CUDA graph (it waits)"


def test_a_nan_equals_itself_and_a_zero_not_its_negative():
    one = torch.tensor([float("nan"), 0.0, -0.0])
    assert same_bits({"a": (one, one.bool())}, {"a": (one.clone(), one.bool())})
    assert not same_bits([one], [one.abs()]) and not same_bits(one, one.double()) and not same_bits(one, one[:1])
    assert same_bits(one.bfloat16()[0], one.bfloat16()[0])


def test_graphs_are_for_a_gpu_unless_insisted_on():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert graphs_for("auto", cpu) is graphs_for(False, cpu) is graphs_for(False, gpu) is None
    assert graphs_for("auto", gpu).checks == REPLAYS and graphs_for(True, gpu).checks == 0


@pytest.fixture
def exact_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)


@needs_cuda
@pytest.mark.parametrize(("precision", "fold"), [*FORMS, ("fp16", True)])
@pytest.mark.parametrize("name", INNER_LOSSES)
@pytest.mark.usefixtures("exact_kernels")
def test_a_captured_attack_on_a_gpu_gives_the_eager_bits(name: str, precision: str, fold: bool):
    network, _, teacher = networks("cuda", precision, capture_on_cuda)
    for seed, images in enumerate((16, 16, 5, 16, 5)):  # two shapes, and other weights, images and noise every time
        batch = batch_of(images, seed, 16, "cuda")
        objective = objective_of(name, network, batch, teacher)
        expected = eager(network, batch, objective, fold=fold)
        assert torch.equal(attack(network, batch, objective, fold=fold), expected)
        changed(network.model)
    assert len(network.graphs) == 2


@needs_cuda
@pytest.mark.parametrize("model", ["resnet18", "preactresnet18", "mobilenetv2", "wrn34-10"])
@pytest.mark.usefixtures("exact_kernels")
def test_every_captured_family_on_a_gpu_gives_the_eager_bits(model: str):
    network, _, _ = networks("cuda", "bf16", capture_on_cuda, model)
    for seed in range(2):
        batch = batch_of(8, seed, 32, "cuda")
        assert torch.equal(attack(network, batch, fold=True), eager(network, batch, fold=True))
        changed(network.model)


@needs_cuda
@pytest.mark.usefixtures("exact_kernels")
def test_captured_radii_on_a_gpu_are_those_of_the_attack_at_hand():
    network, _, _ = networks("cuda", "bf16", capture_on_cuda)
    for scale in (torch.linspace(0.5, 1.5, 6).cuda(), torch.linspace(1.5, 0.5, 6).cuda()):
        how = {"threat": ThreatModel(eps=0.1 * scale), "step_size": 0.04 * scale, "fold": True}
        batch = batch_of(6, device="cuda")
        assert torch.equal(attack(network, batch, **how), eager(network, batch, **how))
    assert len(network.graphs) == 1


@needs_cuda
def test_a_function_that_reads_a_value_back_is_refused_by_the_capture():
    with pytest.raises(LtatError, match=r"train\.graph=false"):
        Graphs().run(lambda x: x + x.sum().item(), (torch.ones(2, device="cuda"),), "key")
    assert torch.ones(2, device="cuda").sum().item() == 2


@needs_cuda
@pytest.mark.usefixtures("exact_kernels")
def test_on_a_gpu_the_check_passes_and_leaves_a_graph():
    network, _, _ = networks("cuda", "bf16", capture_on_cuda)
    network.graphs = graphs_for("auto", torch.device("cuda"))
    for seed in range(3):
        batch = batch_of(8, seed, 16, "cuda")
        assert torch.equal(attack(network, batch, fold=True), eager(network, batch, fold=True))
        changed(network.model)
    assert network.graphs.why_not is None and len(network.graphs) == 1


@needs_cuda
def test_on_a_gpu_a_process_goes_on_after_a_failed_capture():
    x = torch.ones(2**20, device="cuda")
    for _ in range(3):
        with pytest.raises(LtatError, match="cannot be captured"):
            Graphs().run(lambda x: x + x.sum().item(), (x,), "key")
    torch.cuda.empty_cache()
    assert torch.rand(3, device="cuda").shape == (3,)  # the generator is in no capture
    assert torch.equal(Graphs().run(lambda x: x + 1, (x,), "key"), x + 1)
