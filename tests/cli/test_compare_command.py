"""`ltat compare`: one protocol, every seed, and figures that can be recomputed from the runs."""

import json
import statistics

import pytest
from click.testing import CliRunner

from ltat.cli import compare as command
from ltat.cli.main import main
from ltat.config import list_recipes, load_config
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
        assert f"{statistics.mean(clean):.2f} ± {abs(clean[0] - clean[1]) / 2**0.5:.2f}" in done.output
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
        (["--dataset", "npz"], "--recipe"),
        (["--methods", "pgd-at", "--set", "kd.alpha=1"], "has no setting 'kd'"),
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
    assert said in command.tested_on({ratio})
