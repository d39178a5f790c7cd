"""The run folder: what stands in it, and what it refuses."""

import json
import pickle

import pytest
import torch

from ltat.errors import LtatError
from ltat.training.run_folder import RunFolder, differing_settings
from tests.training.tiny import tiny_config

INDICES = {"train": {"n": 2, "sha256": "aa", "indices": [0, 1]}, "val": {"n": 1, "sha256": "bb", "indices": [2]}}


class Executed:
    """A pickle of this class runs code when loaded carelessly."""

    def __reduce__(self):
        return (pytest.fail, ("the training state executed code",))


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    RunFolder(tmp_path / "run").open(tiny_config(), INDICES, resume=False)
    with pytest.raises(LtatError, match="--resume"):
        RunFolder(tmp_path / "run").open(tiny_config(), INDICES, resume=False)


def test_resuming_with_other_settings_names_them_but_device_and_evaluation_may_change(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(tiny_config(), INDICES, resume=False)
    folder.open(tiny_config("train.device=auto", "eval.n_examples=7"), INDICES, resume=True)
    assert "n_examples = 7" in (tmp_path / "config.toml").read_text()
    with pytest.raises(LtatError, match=r"attack\.eps, train\.epochs"):
        folder.open(tiny_config("train.epochs=9", "attack.eps=0.2"), INDICES, resume=True)
    with pytest.raises(LtatError, match="method 'self-distill', not 'at-bsl'"):
        folder.open(tiny_config("method=at-bsl"), INDICES, resume=True)


def test_resuming_on_other_data_or_another_teacher_is_refused_and_the_record_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(tiny_config(), INDICES, resume=False)
    other = {**INDICES, "train": {"n": 1, "sha256": "cc", "indices": [0]}}
    with pytest.raises(LtatError, match=r"train in indices\.json"):
        folder.open(tiny_config(), other, resume=True)
    assert folder.read_json("indices.json") == INDICES


@pytest.mark.parametrize("out", ["file/x", "file"])
def test_an_impossible_folder_is_told_in_a_sentence(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(LtatError, match="file"):
        RunFolder(tmp_path / out).open(tiny_config(), INDICES, resume=False)


def test_the_environments_of_resumed_runs_are_added_to_the_first(tmp_path):
    folder = RunFolder(tmp_path)
    for torch_version in ("1", "2", "3"):
        folder.record_environment({"torch": torch_version})
    assert folder.read_json("env.json") == {"torch": "1", "resumed": [{"torch": "2"}, {"torch": "3"}]}


def test_settings_that_differ_are_found_at_any_depth():
    assert differing_settings({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1, "c": 3}, "e": 1}) == ["a.c", "d", "e"]


def test_a_training_state_never_executes_code(tmp_path):
    (tmp_path / "state.pt").write_bytes(pickle.dumps(Executed(), protocol=2))
    with pytest.raises(LtatError, match=r"state\.pt"):
        RunFolder(tmp_path).load_state("state.pt")
    torch.save({"x": Executed()}, tmp_path / "state.pt")
    with pytest.raises(LtatError, match=r"state\.pt"):
        RunFolder(tmp_path).load_state("state.pt")


def test_a_truncated_training_state_is_told_in_a_sentence(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save_state("state.pt", {"model": {"w": torch.ones(1000)}})
    whole = (tmp_path / "state.pt").read_bytes()
    (tmp_path / "state.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LtatError, match="delete it"):
        folder.load_state("state.pt")


@pytest.mark.parametrize("content", [b"", b"x", b"PK\x03\x04"])
def test_a_state_of_any_garbage_is_told_in_a_sentence(tmp_path, content):
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(LtatError, match="delete it"):
        RunFolder(tmp_path).load_state("state.pt")


def test_resuming_drops_metrics_of_epochs_that_will_be_trained_again(tmp_path):
    folder = RunFolder(tmp_path)
    for stage, epoch in [("teacher", 1), ("teacher", 2), ("student", 1), ("student", 2)]:
        folder.append_metrics({"stage": stage, "epoch": epoch})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('[1, 2]\n{"a": 1}\n{"stage": "stud')  # the machine stopped in the middle of a line
    folder.forget_metrics_after("student", 1)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["epoch"]) for row in rows] == [("teacher", 1), ("teacher", 2), ("student", 1)]
