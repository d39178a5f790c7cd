"""The command line, whole commands at a time."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner, Result

from ltat.cli.main import COMMANDS, main
from ltat.config import list_recipes
from ltat.data import load_dataset
from ltat.models import build_model, save_model

TINY = [
    *("--dataset", "digits", "--model", "small", "--epochs", "1", "--device", "cpu"),
    *("--set", "attack.steps=1", "--set", "select.set=none", "--set", "eval.n_examples=20"),
    *("--set", 'eval.attacks=["clean","pgd1"]'),
]


def ltat(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def options_of(command: click.Command) -> set[str]:
    return {name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    done = ltat("train", "--method", "at-bsl", *TINY, "--out", folder)
    assert done.exit_code == 0, done.output
    return folder


def test_train_writes_a_run_and_shows_its_table(run: Path):
    assert (run / "last.safetensors").exists()
    assert json.loads((run / "report.json").read_text())["last"]["n"] == 20


def test_a_second_run_does_not_overwrite_the_first(run: Path):
    again = ltat("train", "--method", "at-bsl", *TINY, "--out", run)
    assert again.exit_code == 2 and "--resume" in again.output


def test_resume_needs_nothing_but_the_folder(run: Path):
    before = (run / "last.safetensors").read_bytes()
    again = ltat("train", "--out", run, "--resume")
    assert again.exit_code == 0, again.output
    assert (run / "last.safetensors").read_bytes() == before


def test_eval_takes_data_and_threat_from_the_card_and_writes_json(run: Path, tmp_path: Path):
    file = tmp_path / "report.json"
    done = ltat("eval", run / "last.safetensors", "--attacks", "clean,pgd2", "--n-examples", 30, "--json", file)
    assert done.exit_code == 0, done.output
    report = json.loads(file.read_text())
    assert (report["dataset"], report["n"]) == ("digits", 30)
    assert report["threat_model"]["eps"] == 8 / 255
    assert {"model", "dataset", "n", "threat_model", "clean", "pgd2", "flags"} <= set(report)
    keys = {"overall", "balanced", "tail", "many", "medium", "few", "per_class"}
    assert keys <= set(report["clean"]) and len(report["clean"]["per_class"]) == 10
    assert "pgd2" in done.output and "tail" in done.output


def test_eval_takes_another_radius_when_reported(run: Path, tmp_path: Path):
    file = tmp_path / "report.json"
    ltat("eval", run / "last", "--attacks", "clean", "--eps", "4/255", "--n-examples", 10, "--json", file)
    assert json.loads(file.read_text())["threat_model"]["eps"] == 4 / 255


def test_what_prepare_writes_is_the_set_that_npz_reads(tmp_path: Path):
    done = ltat("data", "prepare", "--dataset", "digits", "--imbalance-ratio", 10, "--out", tmp_path / "d")
    assert done.exit_code == 0, done.output
    written, source = load_dataset("npz", tmp_path / "d"), load_dataset("digits", imbalance_ratio=10.0)
    np.testing.assert_array_equal(written.train.images, source.train.images)
    np.testing.assert_array_equal(written.train.indices, source.train.indices)
    np.testing.assert_array_equal(written.test.labels, source.test.labels)
    again = ltat("data", "prepare", "--dataset", "digits", "--out", tmp_path / "d")
    assert again.exit_code == 2 and "exists already" in again.output


def test_data_info_tells_counts_ratio_and_hash():
    done = ltat("data", "info", "--dataset", "digits")
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in ("imbalance ratio", "D_B", "index hash"))


def test_doctor_tells_versions_and_the_native_build():
    done = ltat("doctor")
    assert done.exit_code == 0, done.output
    assert all(word in done.output for word in ("torch", "pyautoattack", "GPU", "native kernels"))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["train", "--method", "unheard"], ["unheard", "at-bsl"]),
        (["train", "--dataset", "mnist"], ["mnist", "digits"]),
        (["train", "--dataset", "digits", "--model", "vgg"], ["vgg", "small"]),
        (["train", "--dataset", "cifar10", "--data-dir", "nowhere"], ["nowhere", "--download"]),
        (["train", "--dataset", "digits", "--batch-size", "99999", "--model", "small"], ["99999"]),
        (["train", "--dataset", "digits", "--set", "attack.eps=-1"], ["attack.eps", "-1"]),
        (["train", "--dataset", "digits", "--set", "attack.esp=1"], ["attack.esp"]),
        (["train", "--dataset", "digits", "--imbalance-ratio", "0.2"], ["0.2"]),
        (["train", "--dataset", "digits", "--imbalance-ratio", "many"], ["many"]),
        (["train", "--dataset", "digits", "--method", "at-bsl", "--teacher", "t.safetensors"], ["teacher", "at-bsl"]),
        (["train", "--dataset", "digits", "--device", "quantum"], ["quantum"]),
        (["train", "--recipe", "unheard"], ["unheard", "--list-recipes"]),
        (["train", "--seed", "-1", "--dataset", "digits"], ["seed", "-1"]),
        (["eval", "nowhere.safetensors"], ["nowhere.safetensors"]),
        (["data", "info"], ["--dataset"]),
        (["data", "info", "--dataset", "digits", "--imbalance-ratio", "100000"], ["100000"]),
        (["unheard"], ["unheard"]),
    ],
)
def test_wrong_use_is_one_sentence_and_exit_code_2(arguments: list[str], names: list[str], tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 2
    assert all(name in done.output for name in names), done.output
    assert list(tmp_path.iterdir()) == []


def test_wrong_use_from_the_shell_shows_no_traceback(tmp_path: Path):
    command = [sys.executable, "-m", "ltat", "train", "--dataset", "digits", "--model", "vgg"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False)
    assert done.returncode == 2 and done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("attacks", "names"), [("clean,unheard", ["unheard"]), ("clean,,pgd2", ["empty name"]), ("pgd0", ["pgd0"])]
)
def test_eval_refuses_attacks_it_does_not_know(run: Path, attacks: str, names: list[str]):
    done = CliRunner().invoke(main, ["eval", str(run / "last"), "--attacks", attacks])
    assert done.exit_code == 2 and all(name in done.output for name in names)


def test_eval_refuses_data_of_another_shape(tmp_path: Path):
    save_model(build_model("small", num_classes=7, in_channels=1), tmp_path / "m", extra={})
    done = CliRunner().invoke(main, ["eval", str(tmp_path / "m"), "--dataset", "digits"])
    assert done.exit_code == 2 and "classes" in done.output
    nameless = CliRunner().invoke(main, ["eval", str(tmp_path / "m")])
    assert nameless.exit_code == 2 and "--dataset" in nameless.output


def test_help_starts_without_torch():
    code = (
        "import sys; from ltat.cli import main; main(['-h'], standalone_mode=False); assert not 'torch' in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


def test_the_error_can_be_caught_by_its_top_level_name():
    import ltat

    assert ltat.LtatError is ltat.errors.LtatError and issubclass(ltat.LtatError, ValueError)


def test_the_options_that_others_rely_on_stay():
    shared = {"--dataset", "--data-dir", "--imbalance-ratio", "--download"}
    shared |= {"--image-size", "--channels", "--train-list", "--test-list"}
    train = {"--recipe", "--method", "--model", "--teacher", "--epochs", "--batch-size", "--precision", "--device"}
    train |= {"--loader", "--list-recipes", "--seed", "--out", "--resume", "--set", "--show-config", "--profile"}
    evaluation = {"--attacks", "--n-examples", "--batch-size", "--json", "--eps", "--norm", "--precision", "--device"}
    evaluation |= {"--seed", "--state-dir", "--adjust", "--classes-by-name", "--test-imbalance-ratio"}
    context = click.Context(main)
    commands = {name: main.get_command(context, name) for name in COMMANDS}
    assert options_of(commands["train"]) == train | shared
    assert options_of(commands["eval"]) == evaluation | shared
    assert set(commands["data"].commands) == {"info", "prepare"}


@pytest.mark.parametrize("asked", [["--help"], ["train", "--show-config"], ["train", "--list-recipes"]])
def test_several_ranks_show_a_listing_once(asked: list[str], monkeypatch: pytest.MonkeyPatch):
    alone = ltat(*asked).output
    monkeypatch.setenv("WORLD_SIZE", "2")
    shown = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        shown.append(ltat(*asked).output)
    assert shown == [alone, ""] and alone


def test_every_recipe_is_listed_with_its_source_and_can_be_loaded():
    done = ltat("train", "--list-recipes")
    assert done.exit_code == 0
    for name, recipe in list_recipes().items():
        own = done.output.partition(f"{name}\n    ")[2].partition("\n")[0]
        assert len(own) > 40, name
        if name.startswith("ltat-sd/"):
            shown = ltat("train", "--recipe", name, "--show-config")
            assert shown.exit_code == 0, shown.output
            settings = tomllib.loads(shown.output)
            assert settings["method"] == recipe.settings["method"]
            assert ("reconstruction" in own) == (settings["method"] == "self-distill")
            assert f"ratio {settings['data']['imbalance_ratio']:g}," in own


@pytest.mark.parametrize(
    "arguments",
    [("train", "--resume", "--out"), ("train", "--recipe"), ("eval",), ("data", "info", "npz", "--data-dir")],
)
def test_a_folder_that_may_not_be_searched_ends_no_command_in_a_traceback(arguments, tmp_path, monkeypatch):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    for method in ("exists", "is_dir", "is_file"):
        monkeypatch.setattr(Path, method, denied)
    done = ltat(*arguments, tmp_path / "below.toml")
    assert done.exit_code == 2 and done.output.startswith("Error: "), done.output
