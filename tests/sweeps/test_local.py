"""A sweep on this machine: each run in its folder, finished ones skipped, a failed one reported, teachers shared."""

import dataclasses
import io
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from ltat.errors import LtatError
from ltat.sweeps import Local, Phase, RunPlan, SweepReporter, checking, run_sweep, share_teachers
from ltat.sweeps.local import Slot, visible_gpus
from ltat.sweeps.plans import require_distinct
from ltat.sweeps.results import collect
from ltat.sweeps.running import states_of, unfinished
from ltat.sweeps.state import Records, is_finished
from ltat.sweeps.worker import wait_until_unlocked
from ltat.training import train
from ltat.training.run_lock import locked
from tests.sweeps.runs import BREAKING, STUDENT, assert_same_bits, one_thread, tiny_plan


def reporter() -> tuple[SweepReporter, io.StringIO]:
    said = io.StringIO()
    return SweepReporter(Console(file=said, width=200)), said


def plans_in(out: Path) -> list[RunPlan]:
    method = out.parent / "breaking.py"
    method.write_text(BREAKING)
    return share_teachers(
        [
            tiny_plan(out, "broken", f"method={method}:Breaking"),
            tiny_plan(out, "ard/0.5", *STUDENT, "kd.share=0.5", row="ard"),
            tiny_plan(out, "ard-0.5", *STUDENT, "kd.share=1"),
        ],
        out,
    )


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory):
    out = tmp_path_factory.mktemp("sweep") / "out"
    shown, said = reporter()
    plans = plans_in(out)
    return plans, out, run_sweep(plans, Local(jobs=2, threads=1), out, shown), said.getvalue()


def test_a_failed_run_is_reported_in_a_sentence_and_the_others_go_on(swept):
    _, out, states, said = swept
    teacher = next(name for name in states if name.startswith("teacher-"))
    assert {name: state.phase for name, state in states.items()} == {
        "broken": Phase.FAILED,
        **dict.fromkeys(("ard/0.5", "ard-0.5", teacher), Phase.FINISHED),
    }
    assert "planted failure" in states["broken"].error and "\n" not in states["broken"].error
    assert f"broken: failed: {states['broken'].error}" in said
    assert "planted failure" in (out / "logs/broken.log").read_text()


def test_runs_have_the_bits_of_single_runs_whoever_trained_their_teacher(swept, tmp_path: Path):
    plans, out, _, _ = swept
    with one_thread():
        train(plans[1].asked(), tmp_path)
    assert_same_bits(tmp_path, plans[1].folder)
    assert [path.name for path in (out / "teachers").iterdir()] == [plans[1].teacher.name]
    times = [json.loads(plan.folder.joinpath("metrics.jsonl").read_text().splitlines()[0]) for plan in plans[1:]]
    assert times[0]["stage"] == "teacher" and times[0]["seconds"] == times[1]["seconds"]


def test_finished_runs_are_skipped_and_failed_ones_tried_again(swept, monkeypatch: pytest.MonkeyPatch):
    plans, out, _, _ = swept
    assert unfinished(plans, states_of(plans, Records(out))) == [plans[0]]
    monkeypatch.setattr("ltat.sweeps.local.start", lambda *_: pytest.fail("it starts a run"))
    states = run_sweep(plans[1:], Local(), out, reporter()[0])
    assert [state.phase for state in states.values()] == [Phase.FINISHED] * 2


def test_a_run_waits_for_its_own_process_of_a_sweep_that_was_killed(tmp_path: Path):
    lock = tmp_path / ".lock"
    with locked(tmp_path, print):
        wait_until_unlocked(tmp_path, patience=0)  # train() then says who holds the folder
        threading.Timer(0.3, lock.unlink).start()
        wait_until_unlocked(tmp_path)
        assert not lock.exists()


def test_another_run_in_a_folder_is_refused_and_other_attacks_are_evaluated(swept):
    plans, out, _, _ = swept
    other = tiny_plan(out, "ard/0.5", *STUDENT, "kd.share=0.6")
    with pytest.raises(LtatError, match=r"holds a run with other settings \(kd.share\)"):
        run_sweep([other], Local(), out)
    more = tiny_plan(out, "ard/0.5", *STUDENT, "kd.share=0.5", "eval.attacks=clean,pgd2,pgd3")
    assert is_finished(plans[1]) and not is_finished(more)


def test_the_figures_are_those_of_the_reports(swept):
    plans, _, _, _ = swept
    figures = collect(plans)
    assert list(figures) == ["ard", "ard-0.5"]
    report = json.loads((plans[1].folder / "report.json").read_text())["last"]
    assert figures["ard"].runs == ["ard/0.5"]
    assert figures["ard"].figures["pgd2"]["few"] == [report["pgd2"]["few"]]


@pytest.mark.parametrize("gpu", [False, True])
def test_wrong_settings_are_reported_before_any_folder_is_made(
    gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def run(command: list[str], **options: Any) -> Any:
        """The process that tries the runs where there is a GPU, in this process."""
        assert command[1:] == ["-m", "ltat.sweeps", "check"]
        monkeypatch.setattr("sys.stdin", io.StringIO(options["input"]))
        return SimpleNamespace(returncode=checking.main(), stdout=capsys.readouterr().out)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(checking.subprocess, "run", run)
    good = tiny_plan(tmp_path / "out", "a", "method=at-bsl")
    bad = tiny_plan(tmp_path / "out", "b", "method=at-bsl", "eval.n_examples=401")
    with pytest.raises(LtatError, match=r"b: eval.n_examples=401 is more than the 400 test images"):
        run_sweep([good, bad], Local(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_runs_of_one_name_or_folder_are_refused(tmp_path: Path):
    one = tiny_plan(tmp_path, "a", "method=at-bsl")
    for other in (dataclasses.replace(one, name="b"), dataclasses.replace(one, folder=tmp_path / "b")):
        with pytest.raises(LtatError, match="two runs of the sweep"):
            require_distinct([one, other])


def test_a_plan_survives_the_way_to_another_process(swept):
    for plan in swept[0]:
        assert RunPlan.from_json(plan.to_json()) == plan


def test_cores_are_shared_out_and_threads_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plans = [tiny_plan(tmp_path, "a", "method=at-bsl")]
    monkeypatch.setattr("ltat.sweeps.local.available_cores", lambda: set(range(8)))
    assert Local().slots(plans) == [Slot((k,), 1) for k in range(8)]
    assert Local(jobs=2).slots(plans) == [Slot((0, 1, 2, 3), 4), Slot((4, 5, 6, 7), 4)]
    assert [slot.threads for slot in Local(jobs=3).slots(plans)] == [2, 2, 2]
    assert [slot.cores for slot in Local(jobs=16).slots(plans)][7:9] == [(7,), (0,)]
    environment = Local(jobs=2, threads=1).slots(plans)[0].environment()
    assert environment["OMP_NUM_THREADS"] == "1" and environment["PATH"] == os.environ["PATH"]


def test_each_run_gets_one_of_the_gpus_of_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plans = [tiny_plan(tmp_path, "a", "method=at-bsl", "train.device=auto")]
    monkeypatch.setattr("ltat.sweeps.local.available_cores", lambda: set(range(8)))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    assert visible_gpus() == ["5", "3"]
    assert Local().slots(plans) == [Slot((0, 1, 2, 3), 4, "5"), Slot((4, 5, 6, 7), 4, "3")]
    assert [slot.gpu for slot in Local(jobs=4).slots(plans)] == ["5", "3", "5", "3"]
    assert Local().slots(plans)[0].environment()["CUDA_VISIBLE_DEVICES"] == "5"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert visible_gpus() == ["0", "1"]
    with pytest.raises(LtatError, match=r"train\.device=cuda:1"):
        Local().slots([tiny_plan(tmp_path, "b", "method=at-bsl", "train.device=cuda:1")])
    cpu = Local().slots([tiny_plan(tmp_path, "c", "method=at-bsl", "train.device=cpu")])
    assert len(cpu) == 8 and cpu[0].gpu is None
