"""AutoAttack through the authors' package: the same verdicts, resumable, nothing swallowed, nothing left behind."""

import json
import shutil
import sys
from pathlib import Path

import pyautoattack
import pytest
import safetensors.torch
import torch
from pyautoattack.square import SquareAttack
from torch import nn

from ltat.attacks import ThreatModel, official
from ltat.attacks.autoattack import autoattack
from ltat.attacks.journal import Journal, Piece
from ltat.errors import LtatError
from tests.attacks import few_steps


class Pixels(nn.Module):
    """Class c scores the c-th of the first pixels: robust exactly to half the gap between two of them."""

    def __init__(self, classes: int, scale: float = 20.0) -> None:
        super().__init__()
        self.classes = classes
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x.flatten(1)[:, : self.classes]


def images(classes: int, margins: list[float], channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """One image per margin: the pixel of its class stands that far above the others."""
    x = 0.3 + 0.02 * torch.rand(len(margins), channels, 4, 4, generator=torch.Generator().manual_seed(3))
    y = torch.arange(len(margins)) % classes
    x.flatten(1)[torch.arange(len(y)), y] = 0.32 + torch.tensor(margins)
    return x, y


@pytest.fixture(autouse=True)
def with_few_steps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(official, "build", few_steps.build)


MARGINS = [0.02, 0.05, 0.3, 0.4, 0.03, 0.5, -0.2]
THREAT = ThreatModel(eps=0.1)


@pytest.mark.parametrize("classes", [10, 5, 3, 2])
def test_verdicts_are_those_that_the_margins_dictate(classes: int):
    x, y = images(classes, MARGINS)
    result = autoattack(Pixels(classes), x, y, threat=THREAT, batch_size=3)
    assert result.robust.tolist() == [margin > 0.22 for margin in MARGINS]
    assert result.survivors["clean"].tolist() == [margin > 0 for margin in MARGINS]
    assert THREAT.contains(result.x_adv, x).all()
    fooled = result.survivors["clean"] & ~result.robust
    with torch.no_grad():
        predicted = Pixels(classes)(result.x_adv).argmax(1)
    assert (predicted != y)[fooled].all() and torch.equal(result.x_adv[~fooled], x[~fooled])


@pytest.mark.parametrize(("classes", "targets"), [(100, 9), (10, 9), (5, 4), (3, 2), (2, 1)])
def test_the_number_of_targets_fits_the_number_of_classes(classes: int, targets: int):
    x, y = images(classes, [0.02], channels=7)
    result = autoattack(Pixels(classes), x, y, threat=THREAT)
    assert result.settings["targets"] == targets
    assert any("apgd-t is left out" in flag for flag in result.flags) is (classes < 4)
    assert ("apgd-t" in result.survivors) is (classes >= 4)


def test_batches_and_verdicts_are_those_of_one_call_of_the_package():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 10)).eval()
    x = torch.rand(24, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        y = net(x).argmax(1)
    y[:2] = (y[:2] + 1) % 10
    threat = ThreatModel(eps=0.04)
    ours = autoattack(net, x, y, threat=threat, batch_size=7, seed=3)
    package = official.build(net, threat, 10, seed=3, device=torch.device("cpu"))
    theirs, _ = package.run_standard_evaluation(x, y, batch_size=7)
    with torch.no_grad():
        expected = net(theirs).argmax(1) == y
    assert 0 < expected.sum() < 22
    assert torch.equal(ours.robust, expected)
    assert torch.equal(ours.x_adv, theirs)


def test_an_interrupted_run_goes_on_and_ends_the_same(tmp_path: Path):
    x, y = images(10, MARGINS)
    whole = autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2)

    class Stopping:
        def __init__(self) -> None:
            self.left = 3

        def __call__(self, stage: str, done: int, total: int) -> None:
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2, state_path=tmp_path / "s", on_progress=Stopping())
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "s").iterdir()}
    assert len(kept) == 3
    resumed = autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2, state_path=tmp_path / "s")
    assert all((tmp_path / "s" / name).stat().st_mtime_ns == time for name, time in kept.items())
    assert all(torch.equal(whole.survivors[stage], resumed.survivors[stage]) for stage in whole.survivors)
    assert torch.equal(whole.x_adv, resumed.x_adv) and whole.flags == resumed.flags


@pytest.mark.parametrize("change", ["model", "data", "eps", "seed"])
def test_the_state_of_another_run_is_refused(change: str, tmp_path: Path):
    x, y = images(10, MARGINS)
    autoattack(Pixels(10), x, y, threat=THREAT, state_path=tmp_path)
    model = Pixels(10, scale=9.0 if change == "model" else 20.0)
    other = x + 0.01 if change == "data" else x
    threat = ThreatModel(eps=0.11) if change == "eps" else THREAT
    with pytest.raises(LtatError, match="another model, data or setting"):
        autoattack(model, other, y, threat=threat, seed=int(change == "seed"), state_path=tmp_path)


def rewritten(path: Path, change) -> None:
    """The piece with other contents, and the header that stood there."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors, header = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    indices, x_adv = change(tensors["indices"], tensors["x_adv"])
    if change.__name__ == "forge":
        header["sha256"] = Journal._checksum(
            header["fingerprint"], path.stem, Piece(indices, x_adv, tuple(json.loads(header["messages"])))
        )
    path.write_bytes(safetensors.torch.save({"indices": indices, "x_adv": x_adv.contiguous()}, header))


DAMAGES = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "a flipped bit": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "emptied": lambda path: rewritten(path, lambda indices, x_adv: (indices[:0], x_adv[:0])),
    "negative": lambda path: rewritten(path, lambda indices, x_adv: (indices - 7, x_adv)),
    "another batch's": lambda path: path.write_bytes(path.with_name("apgd-ce-00001.safetensors").read_bytes()),
    "no messages": lambda path: path.write_bytes(safetensors.torch.save({"indices": torch.zeros(0)})),
}


@pytest.fixture(scope="module")
def journal(tmp_path_factory: pytest.TempPathFactory):
    """A finished run with its state, to be damaged in a copy."""
    folder = tmp_path_factory.mktemp("journal")
    x, y = images(10, MARGINS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "build", few_steps.build)
        return folder, autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2, state_path=folder)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_batch_is_attacked_again_and_flagged(damage: str, journal, tmp_path: Path):
    x, y = images(10, MARGINS)
    shutil.copytree(journal[0], tmp_path, dirs_exist_ok=True)
    DAMAGES[damage](tmp_path / "apgd-ce-00000.safetensors")
    again = autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2, state_path=tmp_path)
    assert torch.equal(again.x_adv, journal[1].x_adv)
    assert all(torch.equal(again.survivors[stage], alive) for stage, alive in journal[1].survivors.items())
    assert [flag for flag in again.flags if "apgd-ce-00000 could not be trusted" in flag]
    whole = autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2, state_path=tmp_path)
    assert whole.flags == journal[1].flags  # the batch was stored anew


@pytest.mark.parametrize("what", ["clean images", "illegal images", "foreign indices", "twice", "a shorter list"])
def test_a_forged_batch_is_held_to_what_the_network_says(what: str, journal, tmp_path: Path):
    x, y = images(10, MARGINS)
    shutil.copytree(journal[0], tmp_path, dirs_exist_ok=True)

    def forge(indices, x_adv):
        made = {
            "clean images": (indices, x[indices]),
            "illegal images": (indices, 1 - x_adv),
            "foreign indices": (indices + 3, x_adv),
            "twice": (indices[:1].repeat(2), x_adv[:1].repeat(2, 1, 1, 1)),
            "a shorter list": (indices[:1], x_adv),
        }
        return made[what]

    rewritten(tmp_path / "apgd-ce-00000.safetensors", forge)
    again = autoattack(Pixels(10), x, y, threat=THREAT, batch_size=2, state_path=tmp_path)
    assert torch.equal(again.robust, journal[1].robust) and torch.equal(again.x_adv, journal[1].x_adv)
    assert any("could not be trusted" in flag for flag in again.flags)


SIZES = {(12, 12): False, (24, 32): False, (4, 4): False, (8, 8): True, (10, 20): True, (32, 17): True, (16, 16): True}


@pytest.mark.parametrize(("size", "runs"), SIZES.items())
def test_square_runs_in_l2_exactly_where_the_package_can_tile(size: tuple[int, int], runs: bool):
    network = nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1], 5))
    x = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))
    square = SquareAttack(network, norm="L2", n_queries=20, eps=1e-3, seed=0, device="cpu")
    try:
        square.perturb(x, network(x).argmax(1))
        ran = True
    except (RuntimeError, ZeroDivisionError):
        ran = False
    assert ran == runs == ("square" in official.possible_stages(5, "l2", size))
    assert "square" in official.possible_stages(5, "linf", size)


def test_autoattack_in_l2_ends_with_a_flag_on_images_that_square_cannot_tile():
    network = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))
    x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found = autoattack(network, x, network(x).argmax(1), threat=ThreatModel("l2", 1e-4))
    assert "square" not in found.survivors
    assert any("square is left out" in flag and "12x12" in flag for flag in found.flags)


def test_nothing_left_to_attack_is_no_error():
    x, y = images(10, [0.02] * 4)
    wrong = autoattack(Pixels(10), x, (y + 1) % 10, threat=THREAT)
    assert wrong.robust.sum() == 0 and torch.equal(wrong.x_adv, x)
    assert autoattack(Pixels(10), x[:1], y[:1], threat=THREAT).robust.tolist() == [False]  # all fall in the first stage


def test_the_global_generator_and_the_tracer_are_left_as_found():
    x, y = images(10, MARGINS)
    torch.manual_seed(11)
    first = autoattack(Pixels(10), x, y, threat=THREAT)
    after = torch.rand(1)
    torch.manual_seed(11)
    assert torch.equal(after, torch.rand(1))
    torch.manual_seed(12)
    assert torch.equal(first.x_adv, autoattack(Pixels(10), x, y, threat=THREAT).x_adv)
    assert sys.gettrace() is None


def test_channels_last_models_and_images_are_attacked_too():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 5)).eval()
    x = torch.rand(4, 3, 4, 4)
    with torch.no_grad():
        y = net(x).argmax(1)
    expected = autoattack(net, x, y, threat=THREAT)
    net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(autoattack(net, x, y, threat=THREAT).robust, expected.robust)


def test_the_packages_warnings_become_flags():
    class Random(Pixels):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0.5 * torch.rand(len(x), self.classes)

    x, y = images(10, MARGINS)
    flags = autoattack(Random(10), x, y, threat=THREAT).flags
    assert any("randomized" in flag.lower() for flag in flags), flags
    assert not any("version=" in flag for flag in flags), "ltat has no such option"


def test_a_model_with_vanishing_gradients_is_flagged():
    class Masked(Pixels):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.round(super().forward(x) * 4) / 4

    x, y = images(10, [0.1] * 6)
    flags = autoattack(Masked(10), x, y, threat=THREAT).flags
    assert any("gradient" in flag.lower() for flag in flags), flags


def test_an_image_that_a_nan_gradient_breaks_is_no_robustness():
    class Broken(Pixels):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 0 * torch.sqrt(x - x).sum(dim=(1, 2, 3))[:, None]

    x, y = images(10, [0.5] * 4)
    x = nn.functional.pad(x, (0, 4, 0, 4), value=0.3)  # square's l2 needs five pixels
    threat = ThreatModel(norm="l2", eps=0.1)  # of an l-inf step the package takes sign(NaN), which is 0
    result = autoattack(Broken(10), x, y, threat=threat)
    assert result.robust.tolist()[1:] == [False] * 3
    assert threat.contains(result.x_adv, x).all()
    assert not any("broke the threat model" in flag for flag in result.flags)


def test_logits_that_become_nan_under_attack_are_flagged():
    class Undefined(Pixels):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            moved = x.flatten(1).amax(1, keepdim=True) < 0.8
            return super().forward(x).masked_fill(moved, torch.nan)

    x, y = images(10, [0.5] * 4)
    result = autoattack(Undefined(10), x, y, threat=THREAT)
    assert result.robust.tolist() == [True, False, False, False]  # of class 0 the package cannot tell; the flag says so
    assert any("of class 0 such images count as robust" in flag for flag in result.flags)


def test_finite_logits_are_not_flagged_and_no_hook_stays():
    x, y = images(10, MARGINS)
    model = Pixels(10)
    assert not any("under attack" in flag for flag in autoattack(model, x, y, threat=THREAT).flags)
    assert not model._forward_hooks


def test_half_precision_is_flagged():
    x, y = images(10, MARGINS)
    assert any("bf16" in flag for flag in autoattack(Pixels(10), x, y, threat=THREAT, precision="bf16").flags)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"threat": ThreatModel(eps=torch.rand(7))}, "one radius"),
        ({"threat": ThreatModel(box=(-1.0, 1.0))}, r"\(-1.0, 1.0\)"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"y": torch.full((7,), 10)}, "label 10"),
        ({"x": torch.full((7, 3, 4, 4), float("nan"))}, "NaN"),
        ({"seed": 2**63}, "seed is"),
        ({"threat": "linf"}, "threat is 'linf'"),
        ({"x": torch.zeros(7, 3, 4, 4).numpy()}, "x is a numpy array"),
    ],
)
def test_what_autoattack_cannot_do_is_said_before_it_starts(change, names):
    x, y = images(10, MARGINS)
    with pytest.raises(LtatError, match=names):
        autoattack(Pixels(10), **{"x": x, "y": y, "threat": THREAT, **change})


def test_the_tests_above_run_the_authors_package():
    assert pyautoattack.__version__ in official.VERSION
    package = few_steps.BUILD(Pixels(10), THREAT, 10, seed=0, device=torch.device("cpu"))
    assert tuple(package.attacks_to_run) == official.STAGES
    assert package.apgd.n_iter == package.apgd_targeted.n_iter == package.fab.n_iter == 100
