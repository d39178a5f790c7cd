"""The form in which a teacher answers: the copy that the precision allows, or bit for bit the teacher itself."""

import copy

import pytest
import torch
from torch import Tensor, nn

from ltat.attacks import pgd
from ltat.attacks.captured import why_not_captured
from ltat.data import Batch
from ltat.engine.graphs import Graphs
from ltat.engine.network import StepNetwork
from ltat.engine.working_copy import FrozenCopy, WorkingCopy
from ltat.errors import LtatError
from ltat.methods import METHODS, find_method
from ltat.methods.self_distill import SelfDistill
from ltat.methods.teachers import TaughtMethod
from ltat.models import Classifier, build_model, load_model
from ltat.training import Trainer, prepare, train
from ltat.training.reporting import Reporter
from ltat.training.run_data import first_images
from tests.attacks.recording import Recorder
from tests.methods.making import attack_of, loss_of, make_method, objective_of
from tests.training.tiny import tiny_config

NAMES = [name for name in METHODS if issubclass(find_method(name), TaughtMethod)]
COUNTS = torch.tensor([30, 20, 10, 5])


def network(seed: int) -> Classifier:
    torch.manual_seed(seed)
    model = build_model("small", num_classes=4, in_channels=1)
    model.classifier.weight.data.mul_(20)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean.uniform_(-0.3, 0.3)
        norm.running_var.uniform_(0.5, 2)
    return model


def make(name: str, *assignments: str, teacher: nn.Module | None = None) -> TaughtMethod:
    given = ("attack.steps=3", "train.precision=bf16", *assignments)
    return make_method(name, *given, counts=COUNTS, teacher=teacher or network(1))


def one_step(method: TaughtMethod, batch: Batch, student: nn.Module) -> tuple[Tensor, Tensor]:
    """x' and the loss of a step."""
    x_adv = attack_of(method, student, batch, torch.Generator().manual_seed(3))
    loss = loss_of(method, student, batch, x_adv).loss
    loss.backward()
    return x_adv, loss.detach()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The networks that run a forward of their own, in order."""
    seen: list[nn.Module] = []
    for kind in (Classifier, FrozenCopy):
        forward = kind.forward

        def spying(self, x, forward=forward):
            seen.append(self)
            return forward(self, x)

        monkeypatch.setattr(kind, "forward", spying)
    return seen


def test_every_method_with_a_teacher_is_tested_here():
    assert {"self-distill", "ard", "rslad", "adaad", "ard+igdm", "rslad+igdm", "adaad+igdm"} <= set(NAMES)


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
@pytest.mark.parametrize("name", NAMES)
def test_in_half_precision_the_copy_answers_and_never_the_teacher(name, precision, dtype, batch, asked):
    method = make(name, f"train.precision={precision}")
    one_step(method, batch, StepNetwork(network(0).train(), precision))
    copies = [one for one in asked if isinstance(one, FrozenCopy)]
    assert copies and method.teacher not in asked and len(set(map(id, copies))) == 1
    assert copies[0].work.dtype == dtype
    forwards = {"kl-adv": 3, "kl-clean": 1}.get(method.config.attack.loss, 0)  # of the attack, before those of the loss
    assert len(copies) > forwards


KEEPING = [("train.precision=fp32",), ("teacher.precision=fp32",), ("teacher.mode=train",)]


@pytest.mark.parametrize("assignments", KEEPING)
@pytest.mark.parametrize("name", NAMES)
def test_where_the_teacher_is_to_stay_as_it_is_no_copy_is_ever_made(name, assignments, batch, asked, monkeypatch):
    monkeypatch.setattr("ltat.methods.teachers.FrozenCopy.__init__", lambda *_: pytest.fail("a copy"))
    method = make(name, *assignments)
    one_step(method, batch, StepNetwork(network(0).train(), method.config.train.precision))
    assert method.working_teacher(batch.images) is method.teacher and method.teacher in asked
    assert method.remarks(batch.images) == (f"teacher runs as the network itself: {assignments[0]}",)


@pytest.mark.parametrize("name", NAMES)
def test_in_fp32_the_logits_are_the_teachers_bits(name, batch):
    method = make(name, "train.precision=fp32")
    with torch.no_grad():
        expected = method.teacher(torch.cat([batch.images, 1 - batch.images])).chunk(2)
    got = method.teacher_logits_of(batch.images, 1 - batch.images)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))


def test_the_precision_of_a_teacher_is_that_of_the_training_or_fp32():
    assert make("adaad").config.teacher.precision == "train"
    with pytest.raises(LtatError, match=r"teacher\.precision"):
        make("adaad", "teacher.precision=bf16")


def test_gradient_flows_through_the_copy_to_the_images_and_into_no_weight(batch):
    gradients = {}
    for precision in ("train", "fp32"):
        method, student = make("adaad", f"teacher.precision={precision}"), network(0).eval().requires_grad_(False)
        x = batch.images.clone().requires_grad_()
        objective = objective_of(method, student, batch)
        objective(student(x.detach()), batch.labels, x).sum().backward()  # through the teacher alone
        gradients[precision] = x.grad.flatten(1)
        assert not any(p.requires_grad or p.grad is not None for p in method.working_teacher(batch.images).parameters())
        assert not any(p.grad is not None for p in method.teacher.parameters())
    similar = torch.cosine_similarity(gradients["train"], gradients["fp32"])
    assert gradients["fp32"].norm(dim=1).min() > 0.1 and similar.min() > 0.99


def test_a_copy_made_in_inference_mode_can_still_be_attacked(batch):
    method = make("adaad")
    with torch.inference_mode():
        method.teacher_logits(batch.images)
    one_step(method, batch, network(0).train())


class Foreign(nn.Module):
    """A network that is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


class Hesitant(Foreign):
    """One that looks at its numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x if x.mean() > 0 else -x)


@pytest.mark.parametrize("name", ["rslad", "adaad+igdm"])
def test_a_teacher_from_elsewhere_answers_by_a_copy_too(name, batch):
    method, exact = make(name, teacher=Foreign()), make(name, "teacher.precision=fp32", teacher=Foreign())
    assert "working copy in bfloat16, 3 batch norms folded; 3" in method.remarks(batch.images)[0]
    answers = [each.teacher_logits(batch.images) for each in (method, exact)]
    assert 0 < (answers[0] - answers[1]).norm() < 0.02 * answers[1].norm()
    losses = [one_step(each, batch, StepNetwork(network(0).train(), "bf16"))[1] for each in (method, exact)]
    assert torch.allclose(*losses, rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_a_teacher_that_cannot_be_copied_answers_in_fp32_and_the_run_says_why(name, batch):
    hooked = network(1)
    hooked.conv1.register_forward_hook(lambda module, inputs, output: output * 0.5)
    for teacher, why in ((Hesitant(), "Hesitant cannot be traced"), (hooked, "hooks")):
        method = make(name, teacher=teacher)
        with torch.no_grad():
            assert torch.equal(method.teacher_logits(batch.images), method.teacher(batch.images))
        one_step(method, batch, StepNetwork(network(0).train(), "bf16"))
        assert method.working_teacher(batch.images) is method.teacher and why in method.remarks(batch.images)[0]


def test_a_hook_added_to_a_copied_teacher_is_not_lost(batch):
    method = make("adaad")
    assert isinstance(method.working_teacher(batch.images), FrozenCopy)
    method.teacher.conv2.register_forward_hook(lambda module, inputs, output: output * 0)
    assert method.working_teacher(batch.images) is method.teacher


def test_the_copy_is_made_once_and_an_epoch_begins_with_the_teachers_numbers(batch):
    method = make("self-distill")
    first = method.working_teacher(batch.images)
    places = [p.data_ptr() for p in first.parameters()]
    with torch.no_grad():  # as the stage that trains the teacher does
        for tensor in [*method.teacher.parameters(), *method.teacher.buffers()]:
            if tensor.is_floating_point():
                tensor.mul_(1.25)
        method.begin_epoch(1)
        torch.testing.assert_close(
            method.teacher_logits(batch.images), method.teacher(batch.images), rtol=0.02, atol=0.2
        )
    assert method.working_teacher(batch.images) is first and places == [p.data_ptr() for p in first.parameters()]


def test_a_copied_method_has_a_copy_of_its_own_teacher(batch):
    method = make("self-distill")
    before = method.teacher_logits(batch.images)
    trial = copy.deepcopy(method)
    with torch.no_grad():
        for norm in (part for part in trial.teacher.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.bias.add_(1.0)
    trial.begin_epoch(1)
    expected = FrozenCopy(WorkingCopy(trial.teacher, torch.bfloat16))
    assert torch.equal(trial.teacher_logits(batch.images), expected(batch.images))
    assert torch.equal(method.teacher_logits(batch.images), before)
    mine, other = (each.working_teacher(batch.images) for each in (trial, method))
    assert mine.body is mine.work.body is not other.body


# --- as one graph -------------------------------------------------------------------------------------------------


def attacked(method: TaughtMethod, wrapper: StepNetwork, batch: Batch) -> Tensor:
    return attack_of(method, wrapper, batch, torch.Generator().manual_seed(7))


@pytest.mark.parametrize("name", ["adaad", "rslad", "self-distill"])
def test_an_attack_that_asks_the_copy_is_captured_once_and_gives_the_eager_bits(name, batch):
    method, recorder = make(name), Recorder()
    wrapper = StepNetwork(network(0).train(), "bf16", graphs=Graphs(recorder))
    for _ in range(3):
        assert why_not_captured(wrapper, objective_of(method, wrapper, batch)) is None
        eager = attacked(method, StepNetwork(wrapper.model, "bf16"), batch)
        assert torch.equal(attacked(method, wrapper, batch), eager)
        with torch.no_grad():
            for parameter in wrapper.model.parameters():
                parameter.mul_(0.9)
    assert recorder.captured == 1


def test_a_captured_attack_reads_the_copy_where_it_lies(batch):
    method, recorder = make("adaad"), Recorder()
    wrapper = StepNetwork(network(0).train(), "bf16", graphs=Graphs(recorder))
    first = attacked(method, wrapper, batch)
    with torch.no_grad():
        for norm in (part for part in method.teacher.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.weight.neg_()
    method.begin_epoch(2)
    again = attacked(method, wrapper, batch)
    assert torch.equal(again, attacked(method, StepNetwork(wrapper.model, "bf16"), batch))
    assert recorder.captured == 1 and not torch.equal(again, first)
    method._copy = None  # another copy, elsewhere
    assert torch.equal(attacked(method, wrapper, batch), again) and recorder.captured == 2
    layer = method.teacher.classifier
    layer.weight = nn.Parameter(-layer.weight, requires_grad=False)
    moved = attacked(method, wrapper, batch)
    assert torch.equal(moved, attacked(method, StepNetwork(wrapper.model, "bf16"), batch))
    assert recorder.captured == 3 and not torch.equal(moved, again)


# --- a trained teacher --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The checkpoint of a network trained adversarially on digits, and its settings."""
    folder = tmp_path_factory.mktemp("teacher")
    config = tiny_config("method=pgd-at", "data.imbalance_ratio=natural", "select.set=none", "train.epochs=8")
    train(config, folder)
    return folder / "last.safetensors", config


def test_the_copys_logits_and_their_differences_keep_to_the_stated_tolerance(trained):
    path, config = trained
    teacher = load_model(path).eval().requires_grad_(False)
    data = prepare(config).data
    x, y = first_images(data, 200, torch.device("cpu")), torch.from_numpy(data.train.labels[:200]).long()
    x_adv = pgd(teacher, x, y, steps=10, generator=torch.Generator().manual_seed(0))  # of 8/255: small differences
    exact, answer = copy.deepcopy(teacher).double(), FrozenCopy(WorkingCopy(teacher, torch.bfloat16))
    plus, minus = x_adv, 2 * x - x_adv
    with torch.no_grad():
        expected = exact(plus.double()), exact(minus.double())
        got = answer(plus), answer(minus)
    assert got[0].dtype == torch.float32 and not torch.equal(got[0], got[0].bfloat16().float())
    error, scale = got[0] - expected[0], expected[0].square().mean().sqrt()
    assert error.square().mean().sqrt() < 0.005 * scale and error.abs().max() < 0.02 * scale
    difference, wanted = got[0] - got[1], expected[0] - expected[1]
    relative = (difference - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert 0 < relative.median() < 0.02


def curve_of(teacher, *assignments: str) -> list[float]:
    settings = ("method=adaad", "kd.reduction=batchmean", f"teacher.path={teacher}", "train.epochs=3")
    trainer = Trainer(prepare(tiny_config(*settings, "select.set=none", "train.precision=bf16", *assignments)).student)
    return [trainer.run_epoch()["loss"] for _ in range(3)]


def test_training_along_the_copy_stays_within_seed_noise(trained):
    path, _ = trained
    exact, copied = curve_of(path, "teacher.precision=fp32"), curve_of(path)
    noise = max(abs(a - b) for a, b in zip(exact, curve_of(path, "seed.train=1"), strict=True))
    distance = max(abs(a - b) for a, b in zip(exact, copied, strict=True))
    assert exact[-1] < exact[0] and 0 < distance < 0.2 * noise


class Listening(Reporter):
    """Keeps what a run says."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("precision", "form"),
    [
        ("bf16", "working copy in bfloat16, 3 batch norms folded; 3 convolutions fused"),
        ("fp32", "the network itself: train.precision=fp32"),
    ],
)
def test_a_run_says_at_its_start_how_its_teacher_runs(precision, form, tmp_path):
    reporter = Listening()
    settings = ("train.epochs=1", "teacher.epochs=1", "select.set=none", f"train.precision={precision}")
    train(tiny_config(*settings), tmp_path / "run", reporter=reporter)
    said = [line for line in reporter.said if "attack on" in line or "teacher runs" in line]
    assert len(said) == 3 and said[2] == f"student: teacher runs as {form}"


def test_the_copy_has_the_numbers_of_the_teacher_that_the_run_has_trained(tmp_path, monkeypatch):
    methods = []
    monkeypatch.setattr(SelfDistill, "end_epoch", lambda self, epoch: methods.append(self))
    settings = ("train.epochs=1", "teacher.epochs=1", "select.set=none", "train.precision=bf16")
    train(tiny_config(*settings), tmp_path / "run")
    method, saved = methods[-1], load_model(tmp_path / "run" / "teacher").eval()
    x = torch.rand(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(method.teacher_logits(x), FrozenCopy(WorkingCopy(saved, torch.bfloat16))(x))
