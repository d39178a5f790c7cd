"""The run folder: what stands in it, and what it refuses."""

import json
import shutil

import pytest

from ltat.errors import LtatError
from ltat.training.run_folder import RunFolder, differing_settings
from tests.training.states import state
from tests.training.tiny import complete_config

INDICES = {"train": {"n": 2, "sha256": "aa", "indices": [0, 1]}, "val": {"n": 1, "sha256": "bb", "indices": [2]}}


def test_a_folder_that_holds_a_run_is_not_overwritten(tmp_path):
    RunFolder(tmp_path / "run").open(complete_config(), 10, INDICES, resume=False)
    with pytest.raises(LtatError, match="--resume"):
        RunFolder(tmp_path / "run").open(complete_config(), 10, INDICES, resume=False)


def test_resuming_with_other_settings_names_them_but_device_and_evaluation_may_change(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(complete_config(), 10, INDICES, resume=False)
    folder.open(complete_config("train.device=auto", "eval.n_examples=7"), 10, INDICES, resume=True)
    assert "n_examples = 7" in (tmp_path / "config.toml").read_text()
    with pytest.raises(LtatError, match=r"attack\.eps, train\.epochs"):
        folder.open(complete_config("train.epochs=9", "attack.eps=0.2"), 10, INDICES, resume=True)
    with pytest.raises(LtatError, match="method 'self-distill', not 'at-bsl'"):
        folder.open(complete_config("method=at-bsl"), 10, INDICES, resume=True)


def test_resuming_on_other_data_or_another_teacher_is_refused_and_the_record_kept(tmp_path):
    folder = RunFolder(tmp_path)
    folder.open(complete_config(), 10, INDICES, resume=False)
    other = {**INDICES, "train": {"n": 1, "sha256": "cc", "indices": [0]}}
    with pytest.raises(LtatError, match=r"train in indices\.json"):
        folder.open(complete_config(), 10, other, resume=True)
    assert folder.read_json("indices.json") == INDICES


@pytest.mark.parametrize("out", ["file/x", "file"])
def test_an_impossible_folder_is_told_in_a_sentence(tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(LtatError, match="file"):
        RunFolder(tmp_path / out).open(complete_config(), 10, INDICES, resume=False)


def test_the_environments_of_resumed_runs_are_added_to_the_first(tmp_path):
    folder = RunFolder(tmp_path)
    for torch_version in ("1", "2", "3"):
        folder.record_environment({"torch": torch_version})
    assert folder.read_json("env.json") == {"torch": "1", "resumed": [{"torch": "2"}, {"torch": "3"}]}


def test_settings_that_differ_are_found_at_any_depth():
    assert differing_settings({"a": {"b": 1, "c": 2}, "d": 1}, {"a": {"b": 1, "c": 3}, "e": 1}) == ["a.c", "d", "e"]


def test_resuming_makes_the_metrics_those_of_the_state(tmp_path):
    folder = RunFolder(tmp_path)
    for stage, epoch in [("teacher", 1), ("student", 1), ("student", 3)]:
        folder.append_metrics({"stage": stage, "epoch": epoch})
    odd = b'[1, 2]\n{"a": 1}\n{"stage": 1, "epoch": "2"}\n\xff\n' + 9999 * b"[" + b'\n{"stage": "stud'
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(odd)  # the machine stopped in the middle of a line, and others were spoilt
    rows = [{"stage": "student", "epoch": epoch, "loss": 0.5} for epoch in (1, 2)]
    folder.restore_metrics("student", rows)
    there = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert there == [{"stage": "teacher", "epoch": 1}, *rows]


def test_metrics_are_on_the_disk_before_the_state_counts_on_them(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", synced.append)
    RunFolder(tmp_path).append_metrics({"stage": "student", "epoch": 1})
    assert synced


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("env.json", "[1]"),
        ("env.json", '{"resumed": 3}'),
        ("env.json", '{"resumed": [3]}'),
        ("env.json", 99999 * "["),
        ("indices.json", "[1]"),
        ("indices.json", '{"train": 3}'),
        ("indices.json", '{"train": {"n": 2}}'),
        ("indices.json", 99999 * "["),
    ],
)
def test_a_record_of_another_shape_is_told_in_a_sentence(tmp_path, name, content):
    folder = RunFolder(tmp_path)
    folder.open(complete_config(), 10, INDICES, resume=False)
    (tmp_path / name).write_text(content)
    with pytest.raises(LtatError, match=rf"{name}.*delete it"):
        folder.open(complete_config(), 10, INDICES, resume=True)
        folder.record_environment({})


def test_resuming_with_another_torch_or_thread_count_is_said_in_one_line(tmp_path):
    said: list[str] = []
    folder = RunFolder(tmp_path, said.append)
    before = {"packages": {"torch": "2.9"}, "threads": 1, "device": "cpu", "native": None}
    for record in (before, before):
        folder.record_environment(record)
    assert not said
    folder.record_environment({**before, "packages": {"torch": "2.10"}, "threads": 2})
    assert len(said) == 1 and "torch 2.9, then 2.10; threads 1, then 2" in said[0]


def test_what_is_left_of_a_run_without_its_settings_is_refused(tmp_path):
    for resume in (False, True):
        for name in ("state.pt", "teacher-state-before.pt", "metrics.jsonl", "best.safetensors"):
            (tmp_path / name).write_text("")
            with pytest.raises(LtatError, match=rf"{name} without the config\.toml"):
                RunFolder(tmp_path).open(complete_config(), 10, INDICES, resume)
            (tmp_path / name).unlink()
    assert not list(tmp_path.iterdir())


def test_a_state_of_other_settings_or_data_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "one")
    folder.open(complete_config(), 10, INDICES, resume=False)
    folder.save_state("state.pt", state())
    assert folder.load_state("state.pt")["epoch"] == 1
    for name, assignment, indices, what in (
        ("two", "attack.eps=0.2", INDICES, r"other settings \(attack\.eps\)"),
        ("three", "attack.eps=0.15", {**INDICES, "teacher": {"sha256": "cc"}}, r"other data \(teacher"),
    ):
        other = RunFolder(tmp_path / name)
        other.open(complete_config(assignment), 10, indices, resume=False)
        shutil.copy(tmp_path / "one" / "state.pt", tmp_path / name / "state.pt")
        with pytest.raises(LtatError, match=what):
            other.load_state("state.pt")


def test_a_folder_of_a_version_that_kept_no_class_names_is_resumed(tmp_path):
    now = {**INDICES, "classes": {"names": ["a", "b"], "sha256": "dd"}, "teacher_buffers": {"sha256": "ee"}}
    RunFolder(tmp_path).open(complete_config(), 10, INDICES, resume=False)
    RunFolder(tmp_path).save_state("state.pt", state())
    folder = RunFolder(tmp_path)
    folder.open(complete_config(), 10, now, resume=True)
    assert folder.load_state("state.pt") is not None
    for name in ("classes", "teacher_buffers"):  # from now on they are compared
        with pytest.raises(LtatError, match=f"{name} in indices"):
            folder.open(complete_config(), 10, {**now, name: {"sha256": "ff"}}, resume=True)
    with pytest.raises(LtatError, match="teacher_buffers in indices"):
        folder.open(complete_config(), 10, {name: now[name] for name in now if name != "teacher_buffers"}, resume=True)
