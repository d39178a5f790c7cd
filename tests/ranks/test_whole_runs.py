"""`torchrun -m ltat train`: one run of one process and the same on several, interrupted, killed and refused."""

import json
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from ltat.training import train
from ltat.training.run_folder import RunFolder
from ltat.training.run_lock import locked
from tests.ranks.launching import fresh_torchrun, launch, torchrun
from tests.stress.runs import figures, same_run
from tests.training.tiny import TINY, saved_state, tiny_config
from tests.warm import Program, ended

STAGES = (
    *("method=self-distill", "teacher.epochs=2", "teacher.ckpt=best", "student.init=teacher", "select.set=val"),
    *("train.epochs=3", "train.drop_last=false", "train.batch_size=130", "average.kind=ema", "average.decay=0.9"),
)
EVERY_STEP = "train.checkpoint_minutes=1e-9"


def options(*settings: str) -> list[str]:
    """A tiny run's, for the command line."""
    given = [*TINY, *settings]
    method = next(each for each in reversed(given) if each.startswith("method="))
    return [
        "--method",
        method.partition("=")[2],
        *(f"--set={each}" for each in given if not each.startswith("method=")),
    ]


def sentences(said: str) -> list[str]:
    """The errors that the program says, without torchrun's own summary."""
    return [line for line in said.splitlines() if line.startswith("Error: ")]


def crashed(said: str) -> bool:
    """Whether the program ends in a traceback; torchrun's own is of no file of the package."""
    return "ltat/cli/main.py" in said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two stages on two ranks, from its beginning to its end."""
    folder = tmp_path_factory.mktemp("ranks") / "run"
    done = fresh_torchrun(2, "ltat", "train", *options(*STAGES, EVERY_STEP), "--out", str(folder))
    assert done.returncode == 0, done.stderr
    (folder.parent / "said").write_text(done.stdout + done.stderr)
    return folder


def test_rank_0_alone_writes_and_speaks(undisturbed: Path, tmp_path: Path):
    train(tiny_config(*STAGES), tmp_path)
    assert names(undisturbed) == names(tmp_path)
    rows = [(row["stage"], row["epoch"]) for row in figures(undisturbed)]
    assert rows == [(row["stage"], row["epoch"]) for row in figures(tmp_path)]
    assert len(rows) == 5 and json.loads((undisturbed / "env.json").read_text())["ranks"] == 2
    said = (undisturbed.parent / "said").read_text()
    assert said.count("run folder:") == said.count("student: loader") == said.count("Accuracy in percent") == 1
    assert "student: 2 ranks share each batch of 130 images; batch norm sees the whole batch" in said
    assert "Traceback" not in said and "warn" not in said.lower()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_killed_rank_is_restarted_and_the_run_ends_with_the_same_bits(undisturbed: Path, tmp_path: Path):
    folder = tmp_path / "run"
    moments = "1:open,0:opening,1:step,0:prepare,0:record,0:state,1:evaluation,0:evaluation"
    arguments = ["train", *options(*STAGES, EVERY_STEP), "--out", str(folder)]
    done = torchrun(2, "tests.ranks.killed", moments, *arguments, restarts=8)
    assert done.returncode == 0, done.stderr
    same_run(undisturbed, folder)
    assert names(undisturbed) == names(folder)
    assert len(json.loads((folder / "env.json").read_text())["resumed"]) == 4
    assert not crashed(done.stderr)


def test_a_restart_does_not_resume_the_run_of_another(undisturbed: Path):
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}
    done = torchrun(2, "ltat", "train", *options(*STAGES, EVERY_STEP), "--out", str(undisturbed), restarts=2)
    assert done.returncode != 0 and len(sentences(done.stderr)) == 3, done.stderr
    assert all("already holds a run" in sentence for sentence in sentences(done.stderr))
    assert before == {path.name: path.read_bytes() for path in undisturbed.iterdir() if path.is_file()}


def test_a_terminated_run_is_resumed_to_the_same_bits(undisturbed: Path, tmp_path: Path):
    folder = tmp_path / "run"
    command = launch(2, "ltat", "train", *options(*STAGES, EVERY_STEP), "--out", str(folder))
    stopped_when((folder / "state.pt").exists, command, signal.SIGTERM)
    done = ended(*command, "--resume")
    assert done.returncode == 0, done.stderr
    same_run(undisturbed, folder)
    assert names(undisturbed) == names(folder)


def stopped_when(ready: Callable[[], bool], command: Sequence[str], number: int) -> str:
    """Run a command, send it a signal when something is ready, and return what it says."""
    with Program(*command) as program:
        while not ready() and program.poll() is None:
            time.sleep(0.02)
        program.send_signal(number)
        _, said = program.communicate()
        assert program.returncode != 0, said
        return said


def test_a_run_goes_on_with_other_numbers_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    append = RunFolder.append_metrics

    def interrupted(folder: RunFolder, row: dict) -> None:
        append(folder, row)
        signal.raise_signal(signal.SIGINT)

    folder, settings = tmp_path / "run", ("method=pgd-at", "train.epochs=30", "select.set=none")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "append_metrics", interrupted)
        train(tiny_config(*settings), folder)
    command = ["train", "--out", str(folder), "--resume"]
    said = stopped_when(lambda: saved_state(folder)["epoch"] > 2, launch(2, "ltat", *command), signal.SIGINT)
    again = f"torchrun --nproc-per-node 2 -m ltat train --out {folder} --resume"
    assert sentences(said) == [f"Error: interrupted; continue with `{again}`"]
    done = torchrun(3, "ltat", *command)
    assert done.returncode == 0, done.stderr
    assert "warning: resumed elsewhere (" in done.stderr and "ranks 1, then 2, then 3" in done.stderr
    assert [row["epoch"] for row in figures(folder)] == list(range(1, 31))


FAILING = """
import os
import torch.nn.functional as F
from ltat.config import RunConfig
from ltat.methods import LossTerms, Method

class Failing(Method):
    Config = RunConfig

    def loss(self, step):
        logits = step.model(step.x_adv)
        return LossTerms(F.cross_entropy(logits, step.batch.labels), logits, {})

    def end_step(self, step, terms):
        if step.epoch == 2 and os.environ["RANK"] == "1":
            raise OSError(28, "No space left on device", "cache")
"""


def test_an_error_on_one_rank_ends_all_in_one_sentence(tmp_path: Path):
    file, folder = tmp_path / "failing.py", tmp_path / "run"
    file.write_text(FAILING)
    settings = options(f"method={file}:Failing", "select.set=none")
    done = torchrun(2, "ltat", "train", *settings, "--out", str(folder))
    assert done.returncode != 0
    assert sentences(done.stderr) == ["Error: cache cannot be used (No space left on device); check the path"]
    assert saved_state(folder)["epoch"] == 1 and not crashed(done.stderr)
    left = {".lock", "config.toml", "env.json", "indices.json", "metrics.jsonl"}
    assert names(folder) == left | {"state.pt", "last.safetensors", "last.json"}


@pytest.mark.parametrize("settings", ["train.compile=true", "optim.lr=1e30 train.batch_size=256"])
def test_what_fails_on_all_ranks_is_one_sentence(settings: str, tmp_path: Path):
    folder = tmp_path / "run"
    done = torchrun(2, "ltat", "train", *options("method=pgd-at", *settings.split()), "--out", str(folder))
    assert done.returncode != 0 and not crashed(done.stderr)
    (sentence,) = sentences(done.stderr)
    if "compile" in settings:
        assert "train.compile=true runs on one rank and there are 2" in sentence and not folder.exists()
    else:
        assert "finite" in sentence and not (folder / "state.pt").exists()


def test_a_folder_in_use_is_refused_in_one_sentence(tmp_path: Path):
    with locked(tmp_path, pytest.fail):
        before = names(tmp_path)
        done = torchrun(2, "ltat", "train", *options("method=pgd-at"), "--out", str(tmp_path))
    assert done.returncode != 0 and names(tmp_path) == before
    (sentence,) = sentences(done.stderr)
    assert "is in use by another run" in sentence
