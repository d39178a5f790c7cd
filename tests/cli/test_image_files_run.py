"""A run on image files, from the command line to its evaluation."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from ltat.cli.main import main
from ltat.config import from_toml
from tests.data.pictures import image_folder, picture

TINY = [
    *("--method", "at-bsl", "--model", "small", "--epochs", "1", "--batch-size", "8", "--device", "cpu"),
    *("--set", "attack.steps=1", "--set", "select.set=none", "--set", 'eval.attacks=["clean"]'),
]


def ltat(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Images of several sizes, one of them grey, and a list of each part."""
    folder = image_folder(tmp_path / "images", per_class=6)
    picture(folder / "train/bee/0.png", (20, 30))
    picture(folder / "test/cat/0.png", (16, 16), "L")
    for part in ("train", "test"):
        paths = sorted((folder / part).rglob("*.png"))
        lines = [f"{path.relative_to(folder)} {'abc'.index(path.parent.name[0])}" for path in paths]
        (tmp_path / f"{part}.txt").write_text("\n".join(lines))
    return folder


@pytest.mark.parametrize("name", ["imagefolder", "imagelist"])
def test_a_run_finds_its_images_again(name: str, mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    lists = ("--train-list", "train.txt", "--test-list", "test.txt") if name == "imagelist" else ()
    data = ("--dataset", name, "--data-dir", "images", *lists, "--image-size", 16, "--channels", 3)
    trained = ltat("train", *data, *TINY, "--out", "run")
    assert trained.exit_code == 0, trained.output
    stored = from_toml(tmp_path / "run/config.toml")["data"]
    assert (stored["image_size"], stored["channels"], stored["dir"]) == (16, 3, str(mixed))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    evaluated = ltat("eval", "../run/last", "--attacks", "clean", "--device", "cpu", "--json", "report.json")
    assert evaluated.exit_code == 0, evaluated.output
    at_the_end = json.loads((tmp_path / "run/report.json").read_text())["last"]
    again = json.loads(Path("report.json").read_text())
    assert again["n"] == 6 and again["clean"] == at_the_end["clean"]
    resumed = ltat("train", "--out", "../run", "--resume")
    assert resumed.exit_code == 0, resumed.output


def test_what_the_command_line_says_of_the_data_goes_before_the_run(mixed: Path, tmp_path: Path):
    data = ("--dataset", "imagefolder", "--data-dir", mixed, "--image-size", 8, "--channels", 3)
    assert ltat("train", *data, *TINY, "--out", tmp_path / "run").exit_code == 0
    moved = mixed.rename(tmp_path / "moved")
    asked = ("eval", tmp_path / "run/last", "--attacks", "clean", "--device", "cpu")
    assert ltat(*asked).exit_code == 2
    found = ltat(*asked, "--data-dir", moved)
    assert found.exit_code == 0, found.output


def test_settings_beside_a_checkpoint_that_are_none_are_reported(mixed: Path, tmp_path: Path):
    data = ("--dataset", "imagefolder", "--data-dir", mixed, "--image-size", 8, "--channels", 1)
    assert ltat("train", *data, *TINY, "--out", tmp_path / "run").exit_code == 0
    file = tmp_path / "run/config.toml"
    file.write_text(file.read_text().replace("image_size = 8", 'image_size = "wide"'))
    result = ltat("eval", tmp_path / "run/last", "--attacks", "clean", "--device", "cpu")
    assert result.exit_code == 2 and "data.image_size holds 'wide'" in result.output
    other = ltat("eval", tmp_path / "run/last", "--attacks", "clean", "--device", "cpu", "--dataset", "digits")
    assert "wide" not in other.output


def test_training_on_a_broken_image_names_it_and_ends(mixed: Path, tmp_path: Path):
    path = mixed / "train/cat/3.png"
    Image.open(path).resize((64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-100])
    data = ("--dataset", "imagefolder", "--data-dir", mixed, "--image-size", 8, "--channels", 3)
    result = ltat("train", *data, *TINY, "--out", tmp_path / "run")
    assert result.exit_code == 2 and f"{path} cannot be read as an image" in result.output


def test_what_is_not_read_is_reported_by_every_command_that_reads(mixed: Path, tmp_path: Path):
    picture(mixed / "train/.ipynb_checkpoints/0.png")
    (mixed / "test/cat/notes.txt").touch()
    data = ("--dataset", "imagefolder", "--data-dir", mixed, "--image-size", 8, "--channels", 3)
    trained = ltat("train", *data, *TINY, "--out", tmp_path / "run")
    evaluated = ltat("eval", tmp_path / "run/last", "--attacks", "clean", "--device", "cpu")
    for done in (ltat("data", "info", *data), trained, evaluated):
        assert done.exit_code == 0, done.output
        assert "passed over 1 × file of .txt, 1 × folder .ipynb_checkpoints" in done.output.replace("over: ", "over ")
