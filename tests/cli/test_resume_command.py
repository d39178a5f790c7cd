"""`ltat train --resume`: what it starts, what it refuses, and what an interruption advises."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ltat.cli.main import main
from ltat.config import Asked, RunConfig, load_config, to_toml
from ltat.methods import find_method


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["train", *map(str, arguments)])


@pytest.fixture
def standing(tmp_path: Path) -> Path:
    """A folder that holds the settings of an AT-BSL run."""
    asked = load_config(lambda name: find_method(name).Config, settings={"method": "at-bsl", "data.name": "digits"})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(to_toml(asked.config))
    return tmp_path / "run"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Asked[RunConfig]]:
    """The settings that training was called with; nothing is trained."""
    configs = []
    monkeypatch.setattr("ltat.training.run.train", lambda config, *_, **__: configs.append(config) or {})
    return configs


def test_resuming_nothing_is_no_training_by_defaults(tmp_path: Path, started: list[Asked[RunConfig]]):
    done = run("--resume", "--out", tmp_path / "typo", "--epochs", 3)
    assert done.exit_code == 2 and "typo holds no run to resume" in done.output
    assert not started and not list(tmp_path.iterdir())


def test_a_full_command_with_resume_starts_where_nothing_stands(tmp_path: Path, started: list[Asked[RunConfig]]):
    done = run("--resume", "--out", tmp_path / "new", "--dataset", "digits", "--method", "at-bsl")
    assert done.exit_code == 0, done.output
    assert started[0].config.method == "at-bsl"


@pytest.mark.parametrize("other", [["--method", "pgd-at"], ["--recipe", "demo/digits-self-distill"]])
def test_a_run_of_another_method_is_reported_as_such(other: list[str], standing: Path, started: list[Asked[RunConfig]]):
    done = run("--resume", "--out", standing, *other)
    assert done.exit_code == 2 and "holds a run of method 'at-bsl'" in done.output
    assert not started


def test_an_interruption_advises_a_command_that_the_shell_reads(
    standing: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ltat.training.run.train", interrupted)
    folder = standing.rename(tmp_path / "my run; x")
    assert f"--out '{folder}' --resume" in run("--resume", "--out", folder).output
    early = run("--out", tmp_path / "new", "--dataset", "digits")
    assert "--resume" not in early.output and "nothing was written" in early.output
