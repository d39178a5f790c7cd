"""`ltat compare`: one protocol, every seed, and figures that can be recomputed from the runs."""

import io
import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from ltat.cli import compare as command
from ltat.cli.main import main
from ltat.config import Asked, RunConfig, list_recipes, load_config
from ltat.methods import METHODS, find_method

QUICK = ["--epochs", "1", "--set", "attack.steps=1", "--set", "eval.attacks=clean,pgd2", "--set", "eval.n_examples=40"]


def compare(*arguments):
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


def test_the_table_is_mean_and_deviation_of_the_runs_reports(tmp_path):
    file, out = tmp_path / "figures.json", tmp_path / "out"
    done = compare("--methods", "pgd-at,at-bsl", "--seeds", 2, *QUICK, "--out", out, "--json", file)
    assert done.exit_code == 0, done.output
    figures = json.loads(file.read_text())
    assert list(figures) == ["pgd-at", "at-bsl"]
    for method, own in figures.items():
        reports = [json.loads((out / method / f"s{seed}/report.json").read_text())["last"] for seed in (0, 1)]
        assert own["pgd2 tail"] == [report["pgd2"]["tail"] for report in reports]
        clean = [report["clean"]["overall"] for report in reports]
        assert own["clean overall"] == clean
        assert f"{statistics.mean(clean):.1f} ± {abs(clean[0] - clean[1]) / 2**0.5:.1f}" in done.output
    assert "unified/digits on digits, imbalance ratio 20, whole test set" in done.output
    settings = [(out / "at-bsl" / f"s{seed}/config.toml").read_text() for seed in (0, 1)]
    assert settings[0].replace("train = 0", "train = 1") == settings[1]
    # the same command again trains nothing
    before = [path.read_bytes() for path in sorted(out.rglob("metrics.jsonl"))]
    again = compare("--methods", "pgd-at,at-bsl", "--seeds", 2, *QUICK, "--out", out, "--json", file)
    assert again.exit_code == 0 and json.loads(file.read_text()) == figures
    assert [path.read_bytes() for path in sorted(out.rglob("metrics.jsonl"))] == before


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
    for section in ("data", "model", "optim", "schedule", "train", "eval"):
        assert all(config[section] == configs[0][section] for config in configs), section
    assert {config["select"]["set"] for config in configs} == {"none"}  # and so by what measure does not matter
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

    def keep(plan: dict[str, list[Asked[RunConfig]]], out: Path) -> dict[str, object]:
        configs.clear()
        configs.update({method: own[0].config for method, own in plan.items()})
        return {}

    monkeypatch.setattr("ltat.training.prepare", lambda asked: None)
    monkeypatch.setattr(command, "run_all", keep)
    return configs


def test_fewer_epochs_shorten_the_teacher_and_the_steps_of_both_rates(planned, tmp_path):
    """`--epochs 3` of 60 trained the teacher for all its 30 epochs."""
    done = compare("--methods", "pgd-at,ard", "--epochs", 6)
    assert done.exit_code == 0 and "teachers train for 3 epoch(s)" in done.output, done.output
    assert (planned["ard"].train.epochs, planned["ard"].teacher.epochs, planned["pgd-at"].train.epochs) == (6, 3, 6)
    assert planned["ard"].teacher.schedule.milestones == (0.75, 0.9)  # shares of all epochs
    compare("--methods", "ard", "--epochs", 1)
    assert planned["ard"].teacher.epochs == 1
    compare("--methods", "ard", "--epochs", 6, "--set", "teacher.epochs=9")
    assert planned["ard"].teacher.epochs == 9
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        'data.name = "digits"\ntrain.epochs = 100\nschedule = { milestones = [75, 90], warmup = 10 }\n'
        "teacher = { epochs = 40, schedule = { milestones = [0.5, 30, 36] } }\n"
    )
    compare("--recipe", recipe, "--methods", "ard", "--epochs", 50)
    assert planned["ard"].schedule.milestones == (38, 45) and planned["ard"].schedule.warmup == 5
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


@pytest.mark.parametrize("recipe", [[], ["--recipe", "unified/digits", "--set", "data.imbalance_ratio=natural"]])
def test_ones_own_images_have_a_protocol_and_the_figures_are_theirs(recipe: list[str], own_images, tmp_path):
    """`--dataset npz` had no protocol, and with `--recipe` the figures were those of the recipe's data set."""
    file, out = tmp_path / "figures.json", tmp_path / "out"
    small = ["--set", "model.name=small", "--set", "train.batch_size=16", "--set", "attack.steps=1", "--epochs", 1]
    done = compare(
        *(*recipe, "--dataset", "npz", "--data-dir", own_images, "--methods", "at-bsl", "--seeds", 2, *small),
        *("--set", "eval.attacks=clean,pgd2", "--out", out, "--json", file),
    )
    assert done.exit_code == 0, done.output
    report = json.loads((out / "at-bsl/s1/report.json").read_text())["last"]
    assert (report["dataset"], report["n"], report["clean"]["n"]["per_class"]) == ("mine", 20, [10, 6, 4])
    figures = json.loads(file.read_text())["at-bsl"]
    groups = ("overall", "balanced", "medium", "few", "tail")
    assert list(figures) == [f"{attack} {group}" for attack in ("clean", "pgd2") for group in groups]
    for group in groups:
        assert figures[f"clean {group}"][1] == report["clean"][group]
        assert group in done.output
    named = recipe[1] if recipe else "unified/any"
    assert f"{named} on npz, imbalance ratio natural, whole test set" in done.output


def test_no_figure_is_cut_off_and_no_column_repeats_another():
    five = dict(
        zip(command.GROUPS, ([97.0, 98.25], [97.0, 98.25], [100.0, 100.0], [99.1, 90.2], [1.0, 2.0], []), strict=True)
    )
    figures = {"adaad+igdm": {f"{attack} {group}": own for attack in ("clean", "pgd20") for group, own in five.items()}}
    tables = command.render(figures)
    assert [table.title for table in tables] == ["clean: accuracy in percent", "pgd20: accuracy in percent"]
    assert [column.header for column in tables[0].columns] == ["method", "overall", "many", "medium", "few"]
    figures["natural"] = figures["adaad+igdm"] | {"clean balanced": [90.0, 98.0], "clean tail": [1.0, 3.0]}
    console = Console(width=80, file=io.StringIO())
    console.print(command.render(figures)[0])
    shown = console.file.getvalue()
    for text in ("balanced", "tail", "94.0 ± 5.7", "100.0 ± 0.0", "2.0 ± 1.4"):
        assert text in shown
