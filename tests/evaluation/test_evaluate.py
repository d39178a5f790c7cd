"""Evaluation: what is measured, on what, and what is said about it."""

import json
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import nn

from ltat import evaluate
from ltat.attacks import ThreatModel, official, pgd
from ltat.attacks.autoattack import autoattack
from ltat.data import Dataset, Split
from ltat.engine.network import StepNetwork
from ltat.engine.working_copy import FrozenCopy
from ltat.errors import LtatError
from ltat.evaluation import render_table, write_json
from ltat.evaluation.attacks import ATTACKS
from ltat.models import build_model
from tests.attacks import few_steps

CLASSES = 5
COUNTS = [300, 120, 60, 25, 4]
THREAT = ThreatModel(eps=0.1)


class Brightest(nn.Module):
    """The class of the brightest of the first five pixels; attackable exactly to half the gap."""

    def __init__(self, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)[:, :CLASSES]


def split_of(margins: np.ndarray) -> Split:
    """Ten images of every class whose pixel stands ``margins`` (in 255ths) above the rest."""
    labels = np.repeat(np.arange(CLASSES), 10)
    images = np.full((50, 8, 8, 1), 80, dtype=np.uint8)
    images[np.arange(50), 0, labels, 0] = 80 + margins
    return Split(images, labels, CLASSES, np.arange(50))


@pytest.fixture
def data() -> Dataset:
    margins = np.tile([100, 100, 100, 60, 60, 20, 20, 20, 20, 0], CLASSES)
    margins[40:] = [100, 10, 10, 10, 10, 10, 10, 10, 10, 10]
    test = split_of(margins)
    counts = np.repeat(np.arange(CLASSES), COUNTS)
    train = Split(
        np.random.default_rng(0).integers(0, 256, (len(counts), 8, 8, 1), np.uint8),
        counts,
        CLASSES,
        np.arange(len(counts)),
    )
    return Dataset("margins", train, test, tuple("abcde"))


def test_robust_accuracy_is_what_the_margins_dictate(data):
    found = evaluate(Brightest(), data, attacks=["clean", "pgd20", "cw20"], threat=THREAT).to_json()
    robust = [50.0, 50.0, 50.0, 50.0, 10.0]  # more than 2 * 0.1 * 255 = 51 above the rest
    assert found["pgd20"]["per_class"] == found["cw20"]["per_class"] == robust
    assert found["clean"]["per_class"][4] == 100.0
    assert (found["pgd20"]["tail"], found["pgd20"]["many"], found["pgd20"]["few"]) == (10.0, 50.0, 10.0)
    assert found["pgd20"]["n"]["tail"] == 10 and found["n"] == 50


def test_the_json_is_the_layout_that_others_rely_on(data, tmp_path):
    evaluation = evaluate(Brightest(), data, attacks=["clean", "pgd3"], threat=THREAT, name="mine")
    write_json(tmp_path / "report.json", evaluation)
    found = json.loads((tmp_path / "report.json").read_text())
    assert set(found) == {"model", "dataset", "n", "threat_model", "clean", "pgd3", "flags"}
    assert (found["model"], found["dataset"], found["flags"]) == ("mine", "margins", [])
    assert found["threat_model"] == {"norm": "linf", "eps": 0.1, "box": [0.0, 1.0]}
    groups = {"overall", "balanced", "tail", "many", "medium", "few", "per_class", "n"}
    assert set(found["clean"]) == groups and set(found["pgd3"]) == groups | {"attack"}
    assert found["pgd3"]["attack"]["steps"] == 3 and found["pgd3"]["attack"]["step_size"] == pytest.approx(0.025)
    assert len(found["clean"]["per_class"]) == CLASSES


def test_autoattack_is_reported_with_its_stages_and_never_above_pgd(data, tmp_path, monkeypatch):
    monkeypatch.setattr(official, "build", few_steps.build)
    small = data.test.subset(np.arange(0, 50, 5))
    attacks, kept = ["clean", "pgd20", "autoattack"], str(tmp_path)  # a path may be a string
    found = evaluate(Brightest(), small, attacks=attacks, threat=THREAT, state_dir=kept).to_json()
    assert list((tmp_path / "autoattack").iterdir())
    assert found["autoattack"]["overall"] <= found["pgd20"]["overall"] <= found["clean"]["overall"]
    assert list(found["autoattack"]["stages"]) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert found["autoattack"]["version"] == "standard" and "pyautoattack" in found["autoattack"]["package"]


def test_the_part_of_the_test_set_holds_every_class_alike(data):
    found = evaluate(Brightest(), data, attacks=["clean"], n_examples=15).to_json()
    assert found["n"] == 15 and found["clean"]["n"]["per_class"] == [3] * CLASSES
    with pytest.raises(LtatError, match="51"):
        evaluate(Brightest(), data, attacks=["clean"], n_examples=51)


def test_results_do_not_depend_on_the_batch_size_where_the_attack_is_decided(data):
    few, many = (evaluate(Brightest(), data, threat=THREAT, batch_size=n).to_json() for n in (7, 256))
    assert few == many


def test_an_evaluation_is_repeatable_and_its_seed_matters():
    torch.manual_seed(0)
    model = build_model("small", num_classes=CLASSES, in_channels=1)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (200, 8, 8, 1), dtype=np.uint8)
    with torch.no_grad():
        labels = model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2) / 255).argmax(1).numpy()
    data = Split(images, labels, CLASSES, np.arange(200))
    threat = ThreatModel(eps=0.02)

    def outcome(seed: int) -> list[bool]:
        return evaluate(model, data, attacks=["pgd1"], seed=seed, threat=threat).outcomes["pgd1"].correct.tolist()

    assert outcome(3) == outcome(3)
    assert any(outcome(3) != outcome(seed) for seed in range(4, 24))


def test_the_model_comes_back_in_its_mode_with_its_buffers(data):
    model = build_model("small", num_classes=CLASSES, in_channels=1).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    evaluate(model, data, attacks=["clean", "pgd2"])
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_part_of_the_model_is_in_its_mode_again_afterwards(data, precision):
    model = build_model("small", num_classes=CLASSES, in_channels=1).train()
    evaluate(model, data, attacks=["pgd1"], precision=precision)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_that_diverged_classifies_nothing(data, precision):
    model = build_model("small", num_classes=CLASSES, in_channels=1)
    next(module for module in model.modules() if isinstance(module, torch.nn.Conv2d)).weight.data[0] = torch.nan
    assert not evaluate(model, data, attacks=["clean"], precision=precision).outcomes["clean"].correct.any()


def test_batch_norm_is_in_evaluation_mode_while_measuring(data):
    model = build_model("small", num_classes=CLASSES, in_channels=1).train()
    one, all_at_once = (evaluate(model, data, attacks=["clean"], batch_size=n).to_json() for n in (1, 50))
    assert one == all_at_once


def test_logits_that_are_not_finite_count_as_wrong_and_are_flagged(data):
    class Undefined(Brightest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits = super().forward(x)
            return torch.where(logits.argmax(1, keepdim=True) == 0, torch.nan, logits)

    found = evaluate(Undefined(), data, attacks=["clean"]).to_json()
    assert found["clean"]["per_class"][0] == 0.0
    assert any("not finite" in flag for flag in found["flags"])


def test_a_gradient_that_is_nan_is_no_robustness(data):
    class Broken(Brightest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * torch.sqrt(x - x).sum(dim=(1, 2, 3))[:, None]

    found = evaluate(Broken(), data, attacks=["clean", "pgd5"]).to_json()
    assert found["clean"]["overall"] > 90 and found["pgd5"]["overall"] == 0
    assert any("not finite" in flag for flag in found["flags"])


def test_masked_gradients_are_flagged(data):
    class Masked(Brightest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(torch.round(x * 3) / 3)

    found = evaluate(Masked(), data, attacks=["clean", "pgd5"]).to_json()
    assert any("zero gradient" in flag for flag in found["flags"])


@pytest.fixture(scope="module")
def trained() -> tuple[nn.Module, Split]:
    """A network that knows its images, at logits of an ordinary size."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % CLASSES
    images = np.clip(rng.normal(110 + 12 * labels[:, None, None, None], 30, (60, 4, 4, 1)), 0, 255).astype(np.uint8)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, CLASSES))
    x, y = torch.from_numpy(images).permute(0, 3, 1, 2) / 255, torch.from_numpy(labels)
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return net, Split(images, labels, CLASSES, np.arange(60))


class Scaled(nn.Module):
    def __init__(self, network: nn.Module, by: float) -> None:
        super().__init__()
        self.network, self.by = network, by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by * self.network(x)


def test_logits_that_are_large_or_small_hide_nothing_from_lsa(trained):
    net, data = trained
    figures = {
        by: {
            attack: float(outcome.correct.mean())
            for attack, outcome in evaluate(
                Scaled(net, by), data, attacks=["pgd20", "lsa20"], threat=ThreatModel(eps=0.04)
            ).outcomes.items()
        }
        for by in (0.01, 1, 10, 100)
    }
    assert len({found["lsa20"] for found in figures.values()}) == 1
    assert 0 < figures[1]["lsa20"] <= figures[1]["pgd20"] + 0.04
    assert figures[100]["lsa20"] < figures[100]["pgd20"] - 0.1


def test_an_adversarial_image_outside_the_threat_model_never_counts(data, monkeypatch):
    from ltat.evaluation import attacks

    monkeypatch.setattr(attacks, "pgd", lambda model, x, y, **settings: 1 - x)
    found = evaluate(Brightest(), data, attacks=["clean", "pgd5"], threat=THREAT).to_json()
    assert found["pgd5"]["overall"] == found["clean"]["overall"]
    assert any("broke the threat model" in flag for flag in found["flags"])


def test_pgd20_of_the_report_is_pgd_with_the_settings_it_names(data):
    model = build_model("small", num_classes=CLASSES, in_channels=1).eval()
    x = torch.from_numpy(data.test.images).permute(0, 3, 1, 2).float() / 255
    y = torch.from_numpy(data.test.labels)
    with torch.no_grad():
        y = model(x).argmax(1)
    split = Split(data.test.images, y.numpy(), CLASSES, data.test.indices)
    found = evaluate(model, split, attacks=["pgd20"], threat=ThreatModel(eps=0.02)).outcomes["pgd20"]
    zero_noise = pgd(model, x, y, threat=ThreatModel(eps=0.02), steps=20, step_size=0.005, start="uniform")
    with torch.no_grad():
        expected = (model(zero_noise).argmax(1) == y).float().mean().item()
    assert found.correct.mean() == pytest.approx(expected, abs=0.05)
    assert found.settings["attack"] == {
        "steps": 20,
        "step_size": 0.005,
        "start": "uniform",
        "mode": "eval",
        "loss": "ce",
    }


def test_an_attack_may_name_its_step(data):
    found = evaluate(Brightest(), data, attacks=["pgd4@1/255", "pgd4@0.01"], threat=THREAT).to_json()
    assert found["pgd4@1/255"]["attack"]["step_size"] == 1 / 255
    assert found["pgd4@0.01"]["attack"]["step_size"] == 0.01
    assert found["pgd4@1/255"]["overall"] > found["pgd4@0.01"]["overall"]  # four steps of 1/255 do not get far


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"attacks": ["pgd"]}, "'pgd'"),
        ({"attacks": ["pgd20@"]}, "pgd20@"),
        ({"attacks": ["pgd20@0"]}, "pgd20@0"),
        ({"attacks": ["pgd20@1/0"]}, "pgd20@1/0"),
        ({"attacks": ["pgd20@1.2.3"]}, "pgd20@1.2.3"),
        ({"attacks": ["pgd5@2"]}, "the step of 'pgd5@2'=2 is wider"),
        ({"attacks": ["pgd99999999999999"]}, "more than 10000 steps"),
        ({"attacks": ["pgd" + 5000 * "9"]}, "more than 10000 steps"),
        ({"attacks": ["pgd5@1/1" + 400 * "0"]}, "unknown attack"),
        ({"attacks": [20]}, "unknown attack 20"),
        ({"attacks": None}, "attacks are None"),
        ({"attacks": ["unheard"]}, "unheard"),
        ({"attacks": []}, "no attack"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "int4"}, "int4"),
        ({"train_counts": [1, 2]}, "5 classes"),
        ({"attacks": "clean,pgd20"}, "'clean,pgd20'"),
        ({"threat": 8 / 255}, "give a ThreatModel"),
        ({"threat": ThreatModel("l2", 8.1)}, r"eps=8\.1 is wider in l2 than the diagonal 8 of the box"),
        ({"threat": ThreatModel("l2", 1.0), "attacks": "pgd2@9"}, "the step of 'pgd2@9'=9 is wider in l2"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"device": "gpu"}, "device 'gpu'"),
        ({"device": 1.5}, "device is 1.5"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"n_examples": "5"}, "n_examples is '5'"),
        ({"n_examples": 0}, "n_examples is 0"),
        ({"seed": True}, "seed is True"),
        ({"state_dir": 5}, "state_dir is 5"),
    ],
)
def test_wrong_settings_are_named(settings, names, data):
    with pytest.raises(LtatError, match=names):
        evaluate(Brightest(), data, **settings).to_json()


def test_numbers_of_numpy_and_a_path_as_a_string_are_taken(data, tmp_path):
    eps = np.float32(0.1)
    threat = ThreatModel(eps=float(eps))
    plain = evaluate(Brightest(), data, attacks="pgd2", threat=threat, n_examples=10, batch_size=4, seed=1)
    other = evaluate(
        Brightest(),
        data,
        attacks="pgd2",
        threat=ThreatModel(eps=eps),
        n_examples=np.int64(10),
        batch_size=torch.tensor(4),
        seed=np.uint8(1),
        state_dir=str(tmp_path),
        device=torch.device("cpu"),
    )
    assert json.dumps(other.to_json()) == json.dumps(plain.to_json())


@pytest.mark.parametrize("counts", [[1, 2], list("abcde"), [1, 2, 3, 4, float("nan")], [[1], [2, 3]]])
def test_unfit_counts_are_refused_before_anything_is_attacked(counts, data):
    def model_is_called(*_):
        raise AssertionError

    model = Brightest()
    model.register_forward_hook(model_is_called)
    with pytest.raises(LtatError, match="train_counts"):
        evaluate(model, data, train_counts=counts)


def test_one_attack_needs_no_list(data):
    assert list(evaluate(Brightest(), data, attacks="clean").outcomes) == ["clean"]


@pytest.mark.parametrize(("pixels", "said"), [(7, "every pixel of the evaluated images is 7"), (None, "0 and 1 only")])
def test_a_split_of_implausible_pixels_is_refused_like_a_data_set(data, pixels, said):
    images = np.full_like(data.test.images, pixels) if pixels else (data.test.images > 80).astype(np.uint8)
    split = Split(images, data.test.labels, CLASSES, data.test.indices)
    with pytest.raises(LtatError, match=said):
        evaluate(Brightest(), split, attacks="clean")


def test_an_l2_attack_wider_than_the_images_is_refused():
    x, y = torch.rand(2, 1, 8, 8), torch.tensor([0, 1])
    with pytest.raises(LtatError, match="eps=9 is wider in l2 than the diagonal 8"):
        pgd(Brightest(), x, y, threat=ThreatModel("l2", 9.0), steps=1)
    with pytest.raises(LtatError, match="step_size=9 is wider in l2"):
        pgd(Brightest(), x, y, threat=ThreatModel("l2", 1.0), step_size=9.0, steps=1)


def test_data_that_are_no_split_are_refused(data):
    with pytest.raises(LtatError, match="give a Split or a Dataset"):
        evaluate(Brightest(), data.test.images)


def test_a_model_of_other_channels_is_reported_so(data):
    with pytest.raises(LtatError, match="3 channels and these have 1"):
        evaluate(build_model("small", num_classes=CLASSES, in_channels=3), data)


def test_a_model_of_other_classes_is_refused(data):
    with pytest.raises(LtatError, match="5 classes"):
        evaluate(build_model("small", num_classes=7, in_channels=1), data)


def test_several_models_stand_in_one_table_that_fits_a_terminal(data):
    evaluations = [
        evaluate(Brightest(), data, attacks=["clean", "pgd2"], name=name, threat=THREAT)
        for name in ("AT-BSL", "student")
    ]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_table(evaluations))
    text = console.export_text()
    assert all(word in text for word in ("AT-BSL", "student", "pgd2", "overall", "balanced", "tail", "medium", "few"))
    assert "…" not in text
    assert sum("94.00" in line for line in text.splitlines()) == 2


def test_names_and_figures_stand_whole_at_80_columns(data):
    names = ("self-teacher", "run-3/teacher", "digits-ir20-small-self-distill-s0/best")
    attacks = ("clean", "pgd20@1/255")
    evaluations = [evaluate(Brightest(), data, attacks=attacks, name=name, threat=THREAT) for name in names]
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(render_table(evaluations))
    lines = console.export_text().splitlines()
    rows = [line for line in lines if line.startswith(attacks)]
    assert sum("self-teacher" in row for row in rows) == sum("run-3/teacher" in row for row in rows) == 2
    assert sum("94.00" in row for row in rows) == sum("42.00" in row for row in rows) == 3
    assert not any("…" in line for line in lines)


def test_progress_is_reported_stage_by_stage(data):
    news = []
    evaluate(Brightest(), data, attacks=["clean", "pgd2"], batch_size=20, on_progress=lambda *one: news.append(one))
    assert ("clean", 50, 50) in news
    assert [stage for stage, _, _ in news].count("pgd2") >= 2


def test_an_evaluation_in_half_precision_copies_the_network_once(monkeypatch: pytest.MonkeyPatch):
    made = []
    build = StepNetwork._new_copy
    monkeypatch.setattr(StepNetwork, "_new_copy", lambda network, x: made.append(network) or build(network, x))
    model = build_model("small", num_classes=CLASSES, in_channels=1)
    data = split_of(np.full(50, 20))
    evaluate(model, data, attacks=["pgd2", "cw2"], threat=THREAT, batch_size=20, precision="bf16")
    assert len(made) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_half_precision_is_answered_by_the_copy_that_is_attacked_and_fp32_by_the_network(precision, monkeypatch):
    monkeypatch.setattr(official, "build", few_steps.build)
    model, data = build_model("small", num_classes=CLASSES, in_channels=1), split_of(np.full(50, 20))
    answers = Counter()
    for kind in (StepNetwork, FrozenCopy):
        forward = kind.forward
        monkeypatch.setattr(
            kind, "forward", lambda self, x, kind=kind, forward=forward: (answers.update([kind]), forward(self, x))[1]
        )
    evaluate(model, data, attacks=["pgd2", "autoattack"], threat=THREAT, batch_size=20, precision=precision)
    assert set(answers) == {FrozenCopy if precision == "bf16" else StepNetwork}


def test_an_evaluation_of_a_foreign_network_in_half_precision_warns_of_nothing():
    evaluate(Brightest(), split_of(np.full(50, 20)), attacks="pgd2", threat=THREAT, precision="bf16")


def test_an_evaluation_inside_inference_mode_still_attacks():
    model, data = Brightest(), split_of(np.full(50, 20))
    with torch.inference_mode():
        inside = evaluate(model, data, attacks="pgd2", threat=THREAT)
    assert inside.to_json() == evaluate(model, data, attacks="pgd2", threat=THREAT).to_json()


def test_an_attack_that_breaks_off_costs_no_other_figure(data, monkeypatch):
    def breaks(inputs):
        raise RuntimeError("the size of tensor a\nand more")

    monkeypatch.setitem(ATTACKS, "autoattack", breaks)
    found = evaluate(Brightest(), data, attacks=["clean", "autoattack", "pgd20"], threat=THREAT)
    reported = found.to_json()
    assert set(found.outcomes) == {"clean", "pgd20"} and reported["pgd20"]["overall"] is not None
    assert reported["failed"] == {"autoattack": "the size of tensor a"} and "autoattack" not in reported
    assert any(flag.startswith("autoattack: broke off") for flag in found.flags)
    with pytest.raises(RuntimeError):
        evaluate(Brightest(), data, attacks=["autoattack"], threat=THREAT)


class Wrapped(nn.Module):
    """A network of another project: its attributes mean what they mean there."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.net, self.answer = Brightest(), answer
        self.in_channels, self.num_classes, self.classifier = 64, 1000, "linear"

    def forward(self, x: torch.Tensor) -> object:
        return self.answer(self.net(x))


def test_the_attributes_of_a_foreign_module_are_not_believed(data):
    plain = evaluate(Brightest(), data, attacks=["clean", "pgd2"], threat=THREAT)
    reported = evaluate(Wrapped(lambda logits: logits), data, attacks=["clean", "pgd2"], threat=THREAT)
    assert (reported.outcomes["pgd2"].correct == plain.outcomes["pgd2"].correct).all()
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    assert pgd(Wrapped(lambda logits: logits), x, y, threat=THREAT, steps=1).shape == x.shape


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Wrapped(lambda logits: (logits, None)), "returns tuple and not logits"),
        (Wrapped(lambda logits: {"logits": logits}), "returns dict and not logits"),
        (Wrapped(lambda logits: SimpleNamespace(logits=logits)), "returns SimpleNamespace and not logits"),
        (Wrapped(lambda logits: logits[:, :, None]), r"returns \([12], 5, 1\) and not logits"),
        (lambda x: x.flatten(1), "a function; wrap it in a torch.nn.Module"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).half(), "fails on images .* of torch.float32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES)).double(), "fails on images .* of torch.float32"),
        (nn.Sequential(nn.Flatten(), nn.Linear(49, CLASSES)), "fails on images .*; hand in one that takes them"),
    ],
    ids=["tuple", "dict", "object", "map", "function", "half", "double", "other size"],
)
def test_a_network_that_cannot_be_evaluated_is_reported_in_a_sentence(data, model, said):
    with pytest.raises(LtatError, match=said):
        evaluate(model, data, attacks=["clean", "pgd2"], threat=THREAT)
    x, y = torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.int64)
    for attack in (autoattack, partial(pgd, steps=1)):
        with pytest.raises(LtatError, match=said) as caught:
            attack(model, x, y, threat=THREAT)
        assert "\n" not in str(caught.value)
