"""ARD, RSLAD, AdaAD, and IGDM on top of each: formula, attack, batch norm, teacher, and whole runs."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ltat.config import Asked
from ltat.config.resolving import resolve
from ltat.data import Batch
from ltat.errors import LtatError
from ltat.methods import find_method
from ltat.methods.divergences import kl
from ltat.models import build_model, load_model
from ltat.training import prepare, train
from tests.methods.making import attack_of, loss_of, make_method, objective_of
from tests.methods.test_losses import Linear, cross_entropy64, gradient64, log_softmax, logits64
from tests.training.test_resume import Interrupting, assert_same_run
from tests.training.tiny import tiny_config

COUNTS = torch.tensor([100, 50, 20, 8, 3])
BASES = ["ard", "rslad", "adaad"]
NAMES = [*BASES, *(f"{base}+igdm" for base in BASES)]


def make(name: str, *assignments: str, teacher: nn.Module | None = None, counts: torch.Tensor = COUNTS):
    return make_method(name, *assignments, counts=counts, teacher=teacher)


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(7, 3, 2, 2, generator=generator)
    return Batch(images, torch.randint(5, (7,), generator=generator), torch.arange(7))


@pytest.fixture
def x_adv(batch: Batch) -> torch.Tensor:
    noise = torch.rand(batch.images.shape, generator=torch.Generator().manual_seed(1))
    return (batch.images + 0.1 * (noise - 0.5)).clamp(0, 1)


def elements(t: np.ndarray, s: np.ndarray, guard: float = 0.0) -> np.ndarray:
    p = np.exp(log_softmax(t))
    return p * (np.log(p + guard) - log_softmax(s))


# The losses as the papers and METHODS write them, on logits of "0" = x, "+" = x', "-" = x - delta; 5 classes, 7 images.
def ard64(s, t, y, alpha=1.0, temp=30.0, mean=np.mean):
    return alpha * temp**2 * mean(elements(t("0") / temp, s("+") / temp)) + (1 - alpha) * cross_entropy64(s("0"), y)


def rslad64(s, t, y, mean=np.mean, guard=1e-5):
    adv, clean = mean(elements(t("0"), s("+"), guard)), mean(elements(t("0"), s("0"), guard))
    return 5 / 6 * adv + 1 / 6 * clean


def adaad64(s, t, y, alpha=1.0, mean=np.mean):
    return alpha * mean(elements(t("+"), s("+"))) + (1 - alpha) * mean(elements(t("0"), s("0")))


def igdm64(s, t):
    return batchmean(elements(t("+") - t("-"), s("+") - s("-")))


def batchmean(terms: np.ndarray) -> float:
    return terms.sum(axis=1).mean()


CASES = {
    "ard": ([], ard64),
    "ard mixed": (
        ["kd.share=0.7", "kd.temp=5", "kd.reduction=batchmean"],
        lambda s, t, y: ard64(s, t, y, 0.7, 5.0, batchmean),
    ),
    "rslad": ([], rslad64),
    "rslad sum": (["kd.reduction=sum", "kd.guard=0"], lambda s, t, y: rslad64(s, t, y, np.sum, 0.0)),
    "rslad tens": (
        ["kd.reduction=10xelementmean"],
        lambda s, t, y: rslad64(s, t, y, lambda terms: 10 * np.mean(terms)),
    ),
    "adaad": ([], adaad64),
    "adaad mixed": (
        ["kd.share=0.4", "kd.reduction=batchmean"],
        lambda s, t, y: adaad64(s, t, y, 0.4, batchmean),
    ),
    "ard+igdm": (["igdm.alpha=3"], lambda s, t, y: ard64(s, t, y, 1, 1, batchmean) + 0.9 * igdm64(s, t)),
    "rslad+igdm": (
        [],
        lambda s, t, y: rslad64(s, t, y, batchmean, 0.0) + 0.3 * igdm64(s, t),
    ),
    "adaad+igdm": (
        ["igdm.ramp_len=200"],
        lambda s, t, y: adaad64(s, t, y, mean=batchmean) + 3 / 200 * igdm64(s, t),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_the_formula(case: str, batch, x_adv):
    assignments, formula = CASES[case]
    student, teacher = Linear(2), Linear(3)
    method = make(case.split(maxsplit=1)[0], *assignments, teacher=teacher)
    terms = loss_of(method, student, batch, x_adv, epoch=3, epochs=10)
    terms.loss.backward()

    views = {"+": x_adv, "-": 2 * batch.images - x_adv, "0": batch.images}
    bias = student.bias.detach().double().numpy()
    fixed = [parameter.detach().double().numpy() for parameter in teacher.parameters()]

    def loss64(weight: np.ndarray) -> float:
        return formula(
            lambda view: logits64(weight, bias, views[view]), lambda view: logits64(*fixed, views[view]), batch.labels
        )

    weight = student.weight.detach().double().numpy()
    assert terms.loss.item() == pytest.approx(loss64(weight), rel=2e-5)
    np.testing.assert_allclose(student.weight.grad.numpy(), gradient64(loss64, weight), rtol=2e-3, atol=5e-5)
    torch.testing.assert_close(terms.logits, student(x_adv).detach())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("name", "few", "many"),
    [
        ("ard", "elementmean", "elementmean"),
        ("rslad", "elementmean", "10xelementmean"),
        ("adaad", "elementmean", "batchmean"),
        ("ard+igdm", "batchmean", "batchmean"),
        ("rslad+igdm", "batchmean", "batchmean"),
        ("adaad+igdm", "batchmean", "batchmean"),
    ],
)
def test_the_reduction_left_out_is_the_reference_codes_for_the_number_of_classes(name, few, many):
    method = find_method(name)
    assert [resolve(Asked(method.Config()), n).kd.reduction for n in (10, 100)] == [few, many]
    asked = method.Config.model_validate({"kd": {"reduction": "sum"}})
    assert resolve(Asked(asked), 100).kd.reduction == "sum"


def test_igdm_weighs_as_its_authors_do_for_the_number_of_classes():
    method = find_method("adaad+igdm")
    assert [resolve(Asked(method.Config()), n).igdm.alpha for n in (10, 100)] == [1, 10]
    assert resolve(Asked(method.Config.model_validate({"igdm": {"alpha": 20}})), 100).igdm.alpha == 20


def test_the_reductions_differ_by_the_factors_they_name():
    target, logits = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    value = {name: kl(target, logits, name).item() for name in ("batchmean", "elementmean", "10xelementmean", "sum")}
    assert value["elementmean"] * 5 == pytest.approx(value["batchmean"])
    assert value["10xelementmean"] == pytest.approx(2 * value["batchmean"])
    assert value["sum"] == pytest.approx(6 * value["batchmean"])
    assert kl(target, logits, temperature=3.0).item() == pytest.approx(9 * kl(target / 3, logits / 3).item())


def test_a_target_probability_of_zero_has_finite_value_and_gradient_through_both():
    target = torch.tensor([[200.0, 0.0, -200.0]], requires_grad=True)
    logits = torch.tensor([[0.0, 200.0, 0.0]], requires_grad=True)
    kl(target, logits).backward()
    assert target.grad.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("base", BASES)
def test_igdm_of_identical_networks_adds_nothing(base: str, batch, x_adv):
    alone, with_igdm = Linear(2), Linear(2)
    method = make(f"{base}+igdm", "igdm.ramp=none", teacher=Linear(2))
    known = type(make(base, teacher=Linear(2)).config.kd).model_fields
    same = [f"kd.{key}={str(value).lower()}" for key, value in method.config.kd.model_dump().items() if key in known]
    plain = make(base, *same, teacher=Linear(2))
    for student, one in ((alone, plain), (with_igdm, method)):
        loss_of(one, student, batch, x_adv).loss.backward()
    torch.testing.assert_close(alone.weight.grad, with_igdm.weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("base", BASES)
def test_igdm_of_linear_networks_sees_twice_the_jacobian_along_delta_and_no_offset(base: str, batch, x_adv):
    student, teacher = Linear(2), Linear(3)
    method = make(f"{base}+igdm", teacher=teacher)
    delta = (x_adv - batch.images).flatten(1).double().numpy()
    t, s = (2 * delta @ net.weight.detach().double().numpy().T for net in (teacher, student))
    for offset in (0.0, 4.0):
        with torch.no_grad():
            student.bias += offset * torch.arange(5)
            teacher.bias -= offset * torch.arange(5).flip(0)
        term = loss_of(method, student, batch, x_adv).logs["igdm"].item()
        assert term == pytest.approx(batchmean(elements(t, s)), rel=1e-4)


# --- the attack ---------------------------------------------------------------------------------------------------


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = build_model("small", num_classes=4, in_channels=1).train()
    model.classifier.weight.data.mul_(20)  # fresh logits are so alike that gradients of a divergence are rounding noise
    return model


@pytest.fixture
def picture() -> Batch:
    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 1, 2, 3, 0, 1]), torch.arange(6))


def small(name: str, *assignments: str, teacher: nn.Module):
    return make(name, *assignments, teacher=teacher, counts=torch.tensor([30, 20, 10, 5]))


ATTACKS = {
    "ard": ("ce", "uniform", "train"),
    "rslad": ("kl-clean", "gauss", "eval"),
    "adaad": ("kl-adv", "gauss", "eval"),
    "ard+igdm": ("ce", "uniform_clamp", "eval"),
    "rslad+igdm": ("kl-clean", "gauss", "eval"),
    "adaad+igdm": ("kl-adv", "gauss", "eval"),
}


def spied_attack(monkeypatch, method, batch: Batch, model: nn.Module) -> dict:
    heard = {}

    def pgd(model, x, y, **arguments):
        heard.update(arguments)
        return x

    monkeypatch.setattr("ltat.methods.attacking.pgd", pgd)
    attack_of(method, model, batch, torch.Generator())
    return heard


@pytest.mark.parametrize("name", NAMES)
def test_the_published_attack_reaches_pgd_with_the_right_radius(name: str, picture, monkeypatch):
    heard = spied_attack(monkeypatch, small(name, teacher=network(1)), picture, network(0))
    loss, start, mode = ATTACKS[name]
    assert (heard["start"], heard["mode"], heard["steps"]) == (start, mode, 10)
    assert (heard["threat"].eps, heard["step_size"]) == (8 / 255, 2 / 255)
    assert small(name, teacher=network(1)).config.attack.loss == loss


@pytest.mark.parametrize("name", NAMES)
def test_the_swapped_step_and_radius_shrink_the_training_attack_alone(name: str, picture, monkeypatch):
    method = small(name, "kd.swap_step_eps=true", teacher=network(1))
    heard = spied_attack(monkeypatch, method, picture, network(0))
    assert (heard["threat"].eps, heard["step_size"]) == (2 / 255, 8 / 255)
    assert method.threat.eps == 8 / 255  # what evaluation uses
    monkeypatch.undo()
    moved = attack_of(method, network(0), picture, torch.Generator()) - picture.images
    assert moved.abs().max() <= 2 / 255 + 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_the_attack_climbs_the_methods_own_divergence(name: str, picture):
    model, teacher = network(0), network(1)
    tiny = ("attack.steps=1", "attack.start=zero", "attack.step_size=0.01", "attack.eps=0.05", "attack.mode=eval")
    x_adv = attack_of(small(name, *tiny, teacher=teacher), model, picture, torch.Generator())
    model.eval()
    x = picture.images.clone().requires_grad_()
    log_s = model(x).log_softmax(1)
    log_t = teacher(x if name.startswith("adaad") else picture.images).log_softmax(1)
    if name.startswith("ard"):
        nn.functional.cross_entropy(model(x), picture.labels, reduction="sum").backward()
    else:
        (log_t.exp() * (log_t - log_s)).sum().backward()
    agree = (x_adv - picture.images).sign() == x.grad.sign()
    inside = (picture.images > 0.01) & (picture.images < 0.99)
    assert agree[inside].float().mean() > 0.99


def test_the_gradient_of_adaads_attack_goes_through_the_teacher(picture):
    model, teacher = network(0).eval(), network(1)
    objective = objective_of(small("adaad", teacher=teacher), model, picture)
    x = picture.images.clone().requires_grad_()
    (through_both,) = torch.autograd.grad(objective(model(x), picture.labels, x).sum(), x)
    (student_only,) = torch.autograd.grad(objective(model(x), picture.labels, x.detach()).sum(), x)
    assert (through_both - student_only).abs().max() > 0.1 * student_only.abs().max()


def test_adaads_attack_on_a_student_that_equals_its_teacher_finds_nothing(picture):
    model, method = network(0), small("adaad", teacher=network(0))
    x_adv = attack_of(method, model, picture, torch.Generator().manual_seed(3))
    model.eval()
    assert objective_of(method, model, picture)(model(x_adv), picture.labels, x_adv).abs().max() < 1e-6


# --- batch norm and the teacher -----------------------------------------------------------------------------------


def norm_of(model: nn.Module) -> nn.BatchNorm2d:
    return next(module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


@pytest.mark.parametrize(
    ("name", "assignments", "forwards"),
    [
        ("ard", [], 2),
        ("ard", ["kd.clean_forward=false"], 1),
        ("ard", ["kd.clean_forward=false", "kd.share=0.5"], 2),
        ("rslad", [], 2),
        ("adaad", [], 2),
        ("adaad", ["kd.clean_forward=false"], 1),
        ("adaad", ["kd.clean_forward=false", "kd.share=0.5"], 2),
        ("ard+igdm", [], 2),
        ("rslad+igdm", [], 3),
        ("adaad+igdm", [], 2),
        ("adaad+igdm", ["igdm.bn=freeze_minus"], 1),
        ("ard+igdm", ["igdm.bn=concat"], 1),
        ("rslad+igdm", ["igdm.bn=concat"], 2),
        ("adaad+igdm", ["igdm.bn=concat"], 1),
    ],
)
def test_the_forwards_that_move_the_students_statistics_are_counted(name, assignments, forwards, picture):
    model, teacher = network(0), network(1)
    before = copy.deepcopy(teacher.state_dict())
    loss_of(small(name, *assignments, teacher=teacher), model, picture, picture.images).loss.backward()
    assert norm_of(model).num_batches_tracked.item() == forwards and norm_of(model).track_running_stats
    assert all(value.equal(teacher.state_dict()[key]) for key, value in before.items()) and not teacher.training


def test_the_order_of_the_forwards_is_the_reference_codes(picture):
    seen: dict[str, list[str]] = {}
    x_adv = picture.images + 0.1
    views = {"x": picture.images, "x'": x_adv, "x-d": 2 * picture.images - x_adv}

    class Spy(nn.Module):
        def forward(self, images):
            seen[name].append(next(v for v, image in views.items() if torch.allclose(image, images, atol=1e-6)))
            return model(images)

    model = network(0)
    for name in NAMES:
        seen[name] = []
        loss_of(small(name, teacher=network(1)), Spy(), picture, x_adv)
    assert seen == {
        "ard": ["x'", "x"],
        "rslad": ["x'", "x"],
        "adaad": ["x", "x'"],
        "ard+igdm": ["x'", "x-d"],
        "rslad+igdm": ["x'", "x", "x-d"],
        "adaad+igdm": ["x'", "x-d"],
    }


@pytest.mark.parametrize("name", ["ard+igdm", "rslad+igdm", "adaad+igdm"])
def test_one_concatenated_forward_takes_batch_norms_statistics_over_both_and_keeps_them_apart(name: str, picture):
    x_adv = picture.images + 0.1 * torch.rand(picture.images.shape, generator=torch.Generator().manual_seed(2))
    both = torch.cat([x_adv, 2 * picture.images - x_adv])
    frozen = [network(0).eval(), network(0).eval()]
    loss = {
        bn: loss_of(small(name, f"igdm.bn={bn}", teacher=network(1)), model, picture, x_adv).loss.item()
        for bn, model in zip(("two", "concat"), frozen, strict=True)
    }
    assert loss["concat"] == pytest.approx(loss["two"], rel=1e-5)  # in evaluation mode no image sees another
    seen: list[torch.Tensor] = []
    model = network(0)
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    loss_of(small(name, "igdm.bn=concat", teacher=network(1)), model, picture, x_adv)
    torch.testing.assert_close(seen[0], both)


@pytest.mark.parametrize(("name", "moves"), [("ard", True), ("ard+igdm", False), ("rslad", False), ("adaad", False)])
def test_only_ards_attack_moves_the_batch_norm_statistics(name: str, moves: bool, picture):
    model = network(0)
    attack_of(small(name, teacher=network(1)), model, picture, torch.Generator())
    assert (norm_of(model).num_batches_tracked.item() > 0) == moves


@pytest.mark.parametrize("name", NAMES)
def test_without_a_teacher_or_with_one_of_other_classes_nothing_begins(name: str):
    with pytest.raises(LtatError, match=rf"'{name.replace('+', '.')}' distils .*--teacher.*teacher\.train=balanced"):
        make(name)
    with pytest.raises(LtatError, match="9 classes"):
        make(name, teacher=build_model("small", num_classes=9))


@pytest.mark.parametrize("wrong", ["kd.share=1.5", "kd.share=-1", "kd.reduction=mean"])
@pytest.mark.parametrize("name", BASES)
def test_wrong_settings_are_refused_with_their_name(name: str, wrong: str):
    with pytest.raises(LtatError, match=wrong.split("=", maxsplit=1)[0]):
        make(name, wrong, teacher=Linear(3))


# --- whole runs ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    settings = ("attack.steps=2", "select.set=none", "train.epochs=12", "optim.lr=0.1", "aug.pad=0")
    train(tiny_config("method=pgd-at", "data.imbalance_ratio=natural", *settings), folder)
    return folder / "last.safetensors"


def settings_of(name: str, teacher, *assignments: str):
    given = [f"method={name}", f"teacher.path={teacher}", "train.epochs=2", "attack.steps=2"]
    given.append("kd.reduction=batchmean")  # a mean over classes too would shrink the loss too much for two epochs
    if name == "ard":
        given.append("kd.temp=2")
    return tiny_config(*given, "data.imbalance_ratio=natural", "select.set=none", "eval.n_examples=200", *assignments)


def rows(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_two_epochs_learn_alike_by_seed_and_resume_bit_for_bit(name: str, trained_teacher, tmp_path):
    config = settings_of(name, trained_teacher)
    report = train(config, tmp_path / "whole")
    losses = [row["loss"] for row in rows(tmp_path / "whole")]
    assert losses[-1] < losses[0] and {row["stage"] for row in rows(tmp_path / "whole")} == {"student"}
    assert report["last"].to_json()["pgd2"]["overall"] > 15

    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", reporter=Interrupting(len_epoch(config) + 2))
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def len_epoch(config) -> int:
    return prepare(config).student.loader.steps(1)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_trains_without_nan(name: str, trained_teacher, tmp_path):
    few = ("train.epochs=1", "data.imbalance_ratio=20", "eval.n_examples=20")
    train(settings_of(name, trained_teacher, "train.precision=bf16", *few), tmp_path / "run")
    assert all(np.isfinite(row["loss"]) for row in rows(tmp_path / "run"))
    assert all(value.isfinite().all() for value in load_file(tmp_path / "run" / "last.safetensors").values())


@pytest.mark.parametrize("name", BASES)
def test_a_setting_leaves_the_methods_others_as_published(name: str):
    one = make(
        name,
        "attack.steps=3",
        "train.batch_size=9",
        "optim.lr=0.2",
        "kd.guard=0" if name == "rslad" else "kd.share=0.5",
        "teacher.schedule.factor=0.5",
        teacher=Linear(3),
    ).config
    published = find_method(name).Config()
    assert (one.attack.loss, one.attack.start, one.attack.mode) == ATTACKS[name]
    assert (one.optim.wd, one.train.epochs, one.teacher.train) == (published.optim.wd, published.train.epochs, "none")


@pytest.mark.parametrize("name", ["adaad", "ard+igdm"])
def test_a_balanced_self_teacher_is_trained_first_when_asked(name: str, tmp_path):
    settings = (f"method={name}", "teacher.train=balanced", "teacher.epochs=1", "train.epochs=1")
    report = train(tiny_config(*settings), tmp_path / "run")
    assert [(row["stage"], row["epoch"]) for row in rows(tmp_path / "run")] == [("teacher", 1), ("student", 1)]
    assert "teacher" in report and (tmp_path / "run" / "teacher.safetensors").exists()


def test_without_a_teacher_a_run_stops_before_its_folder_is_made(tmp_path):
    with pytest.raises(LtatError, match="--teacher"):
        train(tiny_config("method=adaad+igdm"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_module_handed_in_teaches_as_the_checkpoint_does_and_stays_as_it_was(trained_teacher, tmp_path):
    model = load_model(trained_teacher)
    module = nn.Sequential(copy.deepcopy(model)).train()  # no Classifier of ours
    before = copy.deepcopy(module.state_dict())
    config = tiny_config("method=adaad", "train.epochs=1")
    train(config, tmp_path / "handed", teacher=module)
    train(tiny_config("method=adaad", "train.epochs=1", f"teacher.path={trained_teacher}"), tmp_path / "named")
    same = [load_file(tmp_path / run / "last.safetensors") for run in ("handed", "named")]
    assert all(same[0][name].equal(same[1][name]) for name in same[0])
    assert module.training and all(p.requires_grad for p in module.parameters())
    assert all(value.equal(module.state_dict()[name]) for name, value in before.items())

    train(config, tmp_path / "handed", teacher=module, resume=True)
    with torch.no_grad():
        module[0].classifier.weight.mul_(2)
    with pytest.raises(LtatError, match=r"other data \(teacher"):
        train(config, tmp_path / "handed", teacher=module, resume=True)


def test_a_run_with_a_module_handed_in_is_not_resumed_without_it(trained_teacher, tmp_path):
    config = tiny_config("train.epochs=1", "teacher.epochs=1")
    train(config, tmp_path / "run", teacher=load_model(trained_teacher))
    with pytest.raises(LtatError, match=r"other data \(teacher"):
        train(config, tmp_path / "run", resume=True)


class Wrong(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, images):
        return images.flatten(1)[:, : self.classes]


@pytest.mark.parametrize(
    ("method", "module", "message"),
    [
        ("adaad", Wrong(9), r"\(2, 9\).*\(2, 10\)"),
        ("adaad", Wrong(1), r"\(2, 1\).*\(2, 10\)"),
        ("adaad", nn.Conv2d(3, 4, 1), "fails on images"),
        ("pgd-at", Wrong(10), "no teacher"),
    ],
)
def test_a_module_that_cannot_teach_is_refused_before_anything_is_written(method, module, message, tmp_path):
    with pytest.raises(LtatError, match=message):
        train(tiny_config(f"method={method}"), tmp_path / "run", teacher=module)
    assert not (tmp_path / "run").exists()


def test_a_teacher_named_and_one_handed_in_are_one_too_many(trained_teacher, tmp_path):
    config = tiny_config("method=adaad", f"teacher.path={trained_teacher}")
    with pytest.raises(LtatError, match="leave one out"):
        train(config, tmp_path / "run", teacher=load_model(trained_teacher))
