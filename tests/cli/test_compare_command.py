"""`ltat compare`: one protocol, every seed, and figures that can be recomputed from the runs."""

import itertools
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from ltat.cli import compare as command
from ltat.cli.main import main
from ltat.config import RunConfig, list_recipes, load_config
from ltat.methods import METHODS, find_method
from ltat.sweeps import Phase, RunPlan, RunState

QUICK = ["--epochs", "1", "--set", "attack.steps=1", "--set", "eval.attacks=clean,pgd2", "--set", "eval.n_examples=40"]


def compare(*arguments):
    return CliRunner(env={"COLUMNS": "140"}).invoke(main, ["compare", *map(str, arguments)])


def test_two_students_share_a_teacher_and_the_same_command_again_runs_nothing(tmp_path, monkeypatch):
    file, out = tmp_path / "figures.json", tmp_path / "out"
    arguments = ("--methods", "ard,rslad", "--seeds", 1, *QUICK, "--out", out, "--json", file)
    done = compare(*arguments)
    assert done.exit_code == 0, done.output
    checkpoints = json.loads(file.read_text())
    assert list(checkpoints) == ["best", "last", "raw-best", "raw-last"]
    tables = dict(zip(checkpoints, parts(done.output, *(f"{name}: accuracy" for name in checkpoints)), strict=True))
    for checkpoint, figures in checkpoints.items():
        assert list(figures) == ["ard", "rslad"]
        for method, own in figures.items():
            report = json.loads((out / method / "s0/report.json").read_text())[checkpoint]
            for group in ("overall", "balanced", "tail", "many", "medium", "few"):
                assert own["figures"]["pgd2"][group] == [report["pgd2"][group]]
            assert f"{report['clean']['overall']:.2f}" in tables[checkpoint]
    assert "balanced" not in done.output  # it is overall
    assert "unified/digits on digits, imbalance ratio 20, whole test set; 1 seed(s), mean" in done.output
    assert "best: the epoch that is best by pgd10 on held-out images" in done.output
    assert "raw-best, raw-last: the network without it" in done.output
    (teacher,) = (out / "teachers").iterdir()
    weights = (teacher / "teacher.safetensors").read_bytes()
    assert [(out / method / "s0/teacher.safetensors").read_bytes() for method in figures] == [weights, weights]
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a finished run was started again"))
    again = compare(*arguments)
    assert again.exit_code == 0 and json.loads(file.read_text()) == checkpoints, again.output


def parts(text: str, *heads: str) -> list[str]:
    """What stands between each of the heads, in their order, and the next."""
    places = [*map(text.index, heads), len(text)]
    assert places == sorted(places)
    return [text[start:end] for start, end in itertools.pairwise(places)]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--methods", "pgd-at,nosuch"], "there is no method 'nosuch'"),
        (["--methods", "pgd-at,"], "empty name"),
        (["--dataset", "npz"], "--data-dir"),
        (["--dataset", "nosuch"], "unknown dataset 'nosuch'"),
        (["--methods", "pgd-at", "--set", "kd.alpha=1"], "has no setting 'kd'"),
        (["--methods", "pgd-at,ard,rslad", "--set", "kd.form=kl_adv"], "has no setting 'kd"),
        (["--methods", "pgd-at,ard", "--set", "teacher.epoch=3"], "has no setting 'teacher"),
        (["--dataset", "cifar10", "--methods", "at-bsl"], "--data-dir"),
    ],
)
def test_wrong_use_is_reported_before_the_first_run(arguments, fragment, tmp_path):
    done = compare(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2 and fragment in done.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("recipe", [name for name in list_recipes() if name.startswith("unified/")])
def test_under_a_unified_protocol_only_the_method_differs(recipe):
    asked = [
        load_config(lambda name: find_method(name).Config, recipe=recipe, settings={"method": method})
        for method in METHODS
    ]
    configs = [each.config.model_dump() for each in asked]
    for section in ("data", "model", "optim", "schedule", "train", "average", "eval"):
        assert all(config[section] == configs[0][section] for config in configs), section
    assert {(config["select"]["set"], config["select"]["metric"]) for config in configs} == {("val", "pgd10")}
    average = configs[0]["average"]
    assert average["kind"] == "ema" and average["raw"]
    assert average["decay_epochs"] == configs[0]["train"]["epochs"] / 20
    shared = ("norm", "eps", "steps", "step_size", "start", "mode")  # the loss that it maximises is the method's
    assert len({tuple(config["attack"][name] for name in shared) for config in configs}) == 1


def test_figures_and_runs_of_one_name_are_refused(tmp_path):
    done = compare("--out", tmp_path / "a", "--json", tmp_path / "a")
    assert done.exit_code == 2 and "both write to" in done.output and not (tmp_path / "a").exists()


@pytest.mark.parametrize(("ratio", "said"), [("natural", "whole test set"), (4.0, "test set of imbalance ratio 4")])
def test_the_comparison_says_what_it_tested_on(ratio: float | str, said: str):
    assert said in command.tested_on(ratio)


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> dict[str, RunConfig]:
    """The settings of the first run of each method that a comparison would make; nothing is trained."""
    configs: dict[str, RunConfig] = {}

    def keep(plans: list[RunPlan], launcher: object, out: Path) -> dict[str, object]:
        configs.clear()
        configs.update({plan.row: plan.asked().config for plan in reversed(plans)})
        return {}

    monkeypatch.setattr(command, "carry_out", keep)
    return configs


def test_fewer_epochs_shorten_the_teacher_and_the_steps_of_both_rates(planned, tmp_path):
    """`--epochs 3` of 60 trained the teacher for all its 30 epochs."""
    done = compare("--methods", "pgd-at,ard", "--epochs", 6)
    assert done.exit_code == 0 and "teachers train for 3 epoch(s)" in done.output, done.output
    assert (planned["ard"].train.epochs, planned["ard"].teacher.epochs, planned["pgd-at"].train.epochs) == (6, 3, 6)
    assert planned["ard"].average.decay_epochs == pytest.approx(0.3) and planned["ard"].teacher.average.kind == "none"
    assert planned["ard"].teacher.schedule.milestones == (0.75, 0.9)  # shares of all epochs
    compare("--methods", "ard", "--epochs", 1)
    assert planned["ard"].teacher.epochs == 1
    compare("--methods", "ard", "--epochs", 6, "--set", "teacher.epochs=9")
    assert planned["ard"].teacher.epochs == 9
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'data.name = "digits"\ntrain.epochs = 100\nschedule = { milestones = [75, 90], warmup = 10 }\nawp.warmup = 9\n'
        "teacher = { epochs = 40, schedule = { milestones = [0.5, 30, 36] }, average = { decay_epochs = 2 } }\n"
    )
    compare("--recipe", recipe, "--methods", "ard", "--epochs", 50)
    assert planned["ard"].schedule.milestones == (38, 45) and planned["ard"].schedule.warmup == 5
    assert (
        planned["ard"].awp.warmup == 4
        and planned["ard"].teacher.average.decay_epochs == 1
        and planned["ard"].average.decay_epochs == 0
    )
    assert (planned["ard"].teacher.epochs, planned["ard"].teacher.schedule.milestones) == (20, (0.5, 15, 18))
    assert "in proportion" not in compare("--methods", "pgd-at", "--epochs", 6).output
    assert "in proportion" not in compare("--methods", "ard").output


def test_a_setting_that_some_methods_lack_is_left_out_for_them_and_said_once(planned, tmp_path):
    """`--set teacher.epochs=2` was refused, because one method of the comparison has no teacher."""
    done = compare(
        *("--methods", "pgd-at,at-bsl,ard,self-distill", "--set", "teacher.epochs=2"),
        *("--set", "kd.form=kl_adv", "--set", "teacher={mode='train'}", "--set", "optim.lr=0.2"),
    )
    assert done.exit_code == 0, done.output
    assert [planned[name].teacher.epochs for name in ("ard", "self-distill")] == [2, 2]
    assert planned["self-distill"].kd.form == "kl_adv" and planned["ard"].teacher.mode == "train"
    assert {own.optim.lr for own in planned.values()} == {0.2}
    lines = done.output.splitlines()
    assert lines.count("--set teacher.epochs=2 is left out for pgd-at, at-bsl, which lack it") == 1
    assert lines.count("--set kd.form=kl_adv is left out for pgd-at, at-bsl, ard, which lack it") == 1
    assert not any("optim.lr" in line for line in lines)
    recipe = tmp_path / "r.toml"
    recipe.write_text('data.name = "digits"\n[teacher]\nepochs = 7\n')
    done = compare("--recipe", recipe, "--methods", "pgd-at,ard")
    assert planned["ard"].teacher.epochs == 7 and "section teacher" in done.output


@pytest.fixture
def own_images(tmp_path: Path) -> Path:
    """An npz folder of 6 x 5 grey images, three classes of 90, 24 and 6 training images."""
    pixels, labels = np.random.default_rng(0), np.repeat([0, 1, 2], [90, 24, 6])
    folder = tmp_path / "mine"
    folder.mkdir()
    for part, own in (("train", labels), ("test", np.repeat([0, 1, 2], [10, 6, 4]))):
        images = pixels.integers(0, 256, (len(own), 6, 5, 1), dtype=np.uint8)
        np.savez(folder / f"{part}.npz", images=images, labels=own)
    return folder


def test_ones_own_images_have_a_protocol_and_the_figures_are_theirs(own_images: Path, tmp_path: Path):
    """`--dataset npz` had no protocol."""
    file, out = tmp_path / "figures.json", tmp_path / "out"
    small = ["--set", "model.name=small", "--set", "train.batch_size=16", "--set", "attack.steps=1", "--epochs", 1]
    done = compare(
        *("--dataset", "npz", "--data-dir", own_images, "--methods", "at-bsl", "--seeds", 2, *small),
        *("--set", "eval.attacks=clean,pgd2", "--out", out, "--json", file),
    )
    assert done.exit_code == 0, done.output
    reports = [json.loads((out / f"at-bsl/s{seed}/report.json").read_text())["last"] for seed in (0, 1)]
    assert (reports[1]["dataset"], reports[1]["n"], reports[1]["clean"]["n"]["per_class"]) == ("mine", 20, [10, 6, 4])
    settings = [(out / f"at-bsl/s{seed}/config.toml").read_text() for seed in (0, 1)]
    assert settings[0].replace("train = 0", "train = 1") == settings[1]
    figures = json.loads(file.read_text())["last"]["at-bsl"]["figures"]["clean"]
    for group in ("overall", "balanced", "medium", "few", "tail"):
        assert figures[group] == [report["clean"][group] for report in reports]
        assert group in done.output
    overall = figures["overall"]
    assert f"{statistics.mean(overall):.2f} ± {statistics.stdev(overall):.2f}" in done.output
    assert "unified/any on npz, imbalance ratio natural, whole test set" in done.output


def test_a_failed_run_fails_the_comparison_and_the_others_are_shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def one_failed(plans: list[RunPlan], launcher: object, out: Path) -> dict[str, RunState]:
        (plans[0].folder).mkdir(parents=True)
        (plans[0].folder / "report.json").write_text('{"last": {"clean": {"overall": 50.0}}}')
        phases = (Phase.FINISHED, Phase.FAILED)
        return {plan.name: RunState(phase, 0, 1, None, error="why") for plan, phase in zip(plans, phases, strict=True)}

    monkeypatch.setattr(command, "carry_out", one_failed)
    done = compare("--methods", "at-bsl", "--seeds", 2, "--out", tmp_path / "out")
    assert done.exit_code == 1 and "50.00" in done.output and "at-bsl-s1: why" in done.output, done.output


def test_without_selection_and_average_the_last_checkpoint_is_all_there_is(planned, tmp_path: Path):
    """The protocol of former versions, whose figures are on docs/methods/digits.md."""
    done = compare("--methods", "at-bsl", "--set", "select.set=none", "--set", "average.kind=none")
    assert done.exit_code == 0 and "best:" not in done.output and "raw-" not in done.output
    assert (planned["at-bsl"].select.set, planned["at-bsl"].average.kind) == ("none", "none")


def test_a_recipe_that_learns_from_its_own_average_is_given_no_other_teacher(planned):
    done = compare("--recipe", "ours/ema-teacher", "--dataset", "digits", "--methods", "self-distill,at-bsl")
    assert done.exit_code == 0, done.output
    assert planned["self-distill"].teacher.train == "ema"
