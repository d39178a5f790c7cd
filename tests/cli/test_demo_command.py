"""`ltat demo` deletes only what a demo wrote, and nothing before everything is checked."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ltat.cli import demo
from ltat.cli.main import main
from ltat.config import Asked, RunConfig, to_toml
from ltat.training.run_lock import locked


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["demo", *map(str, arguments)])


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where the demo trained; training itself and the comparison are left out."""
    folders = []

    def train(asked: Asked[RunConfig], folder: Path) -> None:
        assert not (folder / "config.toml").exists()
        (folder / "config.toml").write_text(to_toml(asked.config))
        folders.append(folder)

    monkeypatch.setattr("ltat.training.train", train)
    monkeypatch.setattr(demo, "compare", lambda *_: [])
    return folders


def test_a_run_that_no_demo_wrote_is_never_deleted(tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path).exit_code == 0
    mine = tmp_path / "self-distill"
    (mine / demo.MARKER).unlink()
    refused = run("--out", tmp_path)
    assert refused.exit_code == 2 and str(mine) in refused.output and "--out" in refused.output
    assert (mine / "config.toml").exists() and (tmp_path / "at-bsl" / "config.toml").exists()
    assert len(trained) == 2


def test_a_marked_folder_with_a_run_of_other_data_is_kept(tmp_path: Path, trained: list[Path]):
    folder = tmp_path / "at-bsl"
    folder.mkdir()
    (folder / demo.MARKER).touch()
    (folder / "config.toml").write_text('method = "at-bsl"\n[data]\nname = "cifar10"\n')
    assert run("--out", tmp_path).exit_code == 2
    assert "cifar10" in (folder / "config.toml").read_text() and not trained


def test_a_demo_replaces_an_earlier_demo(tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path).exit_code == 0
    (tmp_path / "at-bsl" / "old").touch()
    assert run("--out", tmp_path).exit_code == 0
    assert not (tmp_path / "at-bsl" / "old").exists() and len(trained) == 4


@pytest.mark.parametrize("wrong", ["attack.esp=1", "model.name=vgg", "data.name=npz", "bsl.tau=-1", "kd.alpha=1"])
def test_wrong_settings_cost_no_folder(wrong: str, tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path).exit_code == 0
    refused = run("--out", tmp_path, "--set", wrong)
    assert refused.exit_code == 2 and refused.output.startswith("Error: "), refused.output
    assert (tmp_path / "at-bsl" / "config.toml").exists() and len(trained) == 2


def test_wrong_sizes_and_places_are_reported(tmp_path: Path, trained: list[Path]):
    assert "1<=x<=400" in run("--out", tmp_path, "--n-examples", 401).output
    (tmp_path / "file").touch()
    refused = run("--out", tmp_path / "file" / "below")
    assert refused.exit_code == 2 and "cannot write" in refused.output


@pytest.mark.parametrize("in_use", [".", "at-bsl"])
def test_a_folder_in_use_is_not_emptied(in_use: str, tmp_path: Path, trained: list[Path]):
    assert run("--out", tmp_path).exit_code == 0
    with locked(tmp_path / in_use, pytest.fail):
        refused = run("--out", tmp_path)
    assert refused.exit_code == 2 and "in use by another run" in refused.output
    assert (tmp_path / "at-bsl" / "config.toml").exists() and len(trained) == 2
