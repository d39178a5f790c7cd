"""Whole short runs with each choice of ``loss.cls``, and with an adjustment after training."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from ltat.errors import LtatError
from ltat.evaluation.adjustment import CORRECTED_TWICE
from ltat.methods.classification import LOSSES
from ltat.models import load_model, read_card
from ltat.training import prepare, train
from tests.training.test_resume import Interrupting, assert_same_run, metrics
from tests.training.tiny import tiny_config

SHORT = ("method=pgd-at", "train.epochs=2", "train.batch_size=16", "attack.steps=1")


def report(folder: Path, role: str = "last") -> dict:
    return json.loads((folder / "report.json").read_text())[role]


@pytest.mark.parametrize("cls", LOSSES)
def test_a_run_learns_repeats_resumes_and_stays_finite_in_half_precision(cls: str, tmp_path: Path):
    settings = (*SHORT, f"loss.cls={cls}", "loss.drw=0.5", "eval.n_examples=100")  # re-weighted in the second epoch
    config = tiny_config(*settings)
    train(config, tmp_path / "whole")
    assert report(tmp_path / "whole")["clean"]["overall"] > 30  # chance is 10
    with pytest.raises(KeyboardInterrupt):
        train(config, tmp_path / "parts", reporter=Interrupting(40))
    assert len(metrics(tmp_path / "parts")) == 1
    train(config, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    train(tiny_config(*settings, "train.precision=bf16"), tmp_path / "half")
    assert all(np.isfinite(row["loss"]) for row in metrics(tmp_path / "half"))
    assert all(value.isfinite().all() for value in load_file(tmp_path / "half" / "last.safetensors").values())


def test_pgd_at_with_balanced_softmax_is_at_bsl_bit_for_bit(run_tiny):
    one = run_tiny("one", "method=at-bsl", "train.epochs=2")
    other = run_tiny("other", "method=pgd-at", "loss.cls=bsl", "train.epochs=2")
    assert_same_run(one, other)


@pytest.mark.parametrize("method", [["method=reat"], ["method=self-distill", "teacher.epochs=1"]])
def test_the_methods_with_further_terms_take_ldam(method: list[str], run_tiny):
    folder = run_tiny("run", *method, "loss.cls=ldam-drw", "train.epochs=2")
    assert all(np.isfinite(row["loss"]) for row in metrics(folder))
    assert read_card(folder / "last").head == "cosine" and load_model(folder / "last").classifier.scale == 30


def test_the_adjustment_is_in_the_report_and_in_the_choice_of_the_best(run_tiny, tmp_path: Path):
    plain, adjusted = run_tiny("plain", *SHORT), run_tiny("adjusted", *SHORT, "eval.tau=1.5")
    assert (plain / "last.safetensors").read_bytes() == (adjusted / "last.safetensors").read_bytes()
    counts = read_card(adjusted / "last").extra["train_counts"]
    assert report(adjusted)["adjustment"] == {"tau": 1.5, "train_counts": counts}
    assert "adjustment" not in report(plain)
    assert [row["val"] for row in metrics(plain)] != [row["val"] for row in metrics(adjusted)]
    with pytest.raises(LtatError, match=r"eval\.tau"):
        train(tiny_config(*SHORT), adjusted, resume=True)


def test_a_teacher_from_balanced_data_is_not_adjusted_and_a_balanced_loss_is_flagged(run_tiny):
    folder = run_tiny("run", "eval.tau=1", "train.epochs=1", "teacher.epochs=1")
    assert "adjustment" not in report(folder, "teacher") and report(folder)["adjustment"]["tau"] == 1
    assert CORRECTED_TWICE in report(folder)["flags"] and CORRECTED_TWICE not in report(folder, "teacher")["flags"]


@pytest.mark.parametrize(("sampling", "twice"), [("natural", False), ("class_balanced", True)])
def test_balanced_sampling_is_flagged_as_a_balanced_loss_is(sampling: str, twice: bool, run_tiny):
    folder = run_tiny("run", *SHORT, "train.epochs=1", "eval.tau=1", f"data.sampling={sampling}")
    assert (CORRECTED_TWICE in report(folder)["flags"]) == twice
    assert read_card(folder / "last").extra["corrects_prior"] == twice


def test_robals_own_adjustment_and_another_are_refused_before_training():
    robal = ("method=robal", "schedule.kind=multistep", "eval.tau=1")
    with pytest.raises(LtatError, match=r"robal\.tau_p"):
        prepare(tiny_config(*robal, "robal.tau_p=1.5"))
    prepare(tiny_config(*robal))


def test_the_validation_attacks_what_the_report_attacks(run_tiny):
    folder = run_tiny("run", *SHORT, "eval.tau=1", "select.set=test", "select.metric=pgd2", "eval.n_examples=400")
    last = metrics(folder)[-1]
    assert last["score"] == pytest.approx(report(folder)["pgd2"]["balanced"])
