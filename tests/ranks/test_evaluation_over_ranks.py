"""Several ranks evaluate as one process: each batch once, the same verdicts, one failure for all."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

from ltat import evaluate
from ltat.attacks.autoattack import _layers
from ltat.cli.main import main
from ltat.data import load_dataset
from ltat.engine.global_norm import with_global_norms
from ltat.models import build_model, load_model, save_model
from ltat.ranks import Ranks
from tests.ranks import evaluations
from tests.ranks.evaluations import IMAGES, QUICK, alone, contents, evaluated, interrupt, quick_autoattack
from tests.ranks.launching import torchrun

SHARED = ("all attacks", "one batch", "flagged")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Journals and results of all launches."""
    return tmp_path_factory.mktemp("evaluations")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    """What one process finds."""
    return alone(folder)


@pytest.fixture(scope="module", params=[2, 3, 4])
def found(request: pytest.FixtureRequest, folder: Path, one: dict[str, Any]) -> list[dict[str, Any]]:
    """What each rank of a launch finds."""
    ranks = request.param
    interrupt(folder / "1" / "autoattack", folder / f"interrupted for {ranks}" / "autoattack", every=2)
    done = torchrun(ranks, "tests.ranks.evaluation_worker", str(folder))
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{ranks}-{rank}.pt", weights_only=False) for rank in range(ranks)]


def test_every_rank_has_the_verdicts_flags_and_figures_of_one_process(found, one):
    for case in SHARED:
        for rank in found:
            assert {key: rank[case][key] for key in ("verdicts", "json", "failed")} == {
                key: one[case][key] for key in ("verdicts", "json", "failed")
            }
    verdicts = one["all attacks"]["verdicts"]
    assert len(verdicts) == len(evaluations.ATTACKS)
    assert 0 < sum(verdicts["autoattack"]) < sum(verdicts["clean"]) < IMAGES
    assert all(any(word in str(one["flagged"]["json"]["flags"]) for word in words) for words in (["zero"], ["finite"]))


def test_each_batch_is_evaluated_by_one_rank_alone(found, one):
    for case in SHARED:
        assert sum((rank[case]["read"] for rank in found), Counter()) == one[case]["read"]
        assert sum(rank[case]["attacked"] for rank in found) == one[case]["attacked"]
    assert max(rank["all attacks"]["attacked"] for rank in found) < one["all attacks"]["attacked"]


def test_one_bar_shows_the_images_of_all_ranks(found, one):
    ends = {stage: total for stage, _, total in one["all attacks"]["progress"]}
    for stage, total in ends.items():
        by_one = [done for name, done, _ in one["all attacks"]["progress"] if name == stage]
        by_all = [[done for name, done, _ in rank["all attacks"]["progress"] if name == stage] for rank in found]
        assert by_all[0][-1] == total and by_all[0] == sorted(by_all[0])
        assert len({done for rank in by_all for done in rank[:-1]}) == len(by_one)  # each batch counted once, for all


def test_ranks_write_the_journal_of_one_process_and_continue_it(found, one, folder):
    whole = contents(folder / "1" / "autoattack")
    for journal in (folder / f"{len(found)}", folder / f"interrupted for {len(found)}"):
        assert contents(journal / "autoattack") == whole
    assert all(rank["resumed"]["verdicts"] == one["all attacks"]["verdicts"] for rank in found)
    assert sum(rank["resumed"]["attacked"] for rank in found) == len(whole) - len(whole) // 2


def test_one_process_continues_the_journal_of_ranks(found, one, folder, tmp_path):
    whole = contents(folder / f"{len(found)}" / "autoattack")
    interrupt(folder / f"{len(found)}" / "autoattack", tmp_path / "autoattack", every=3)
    with quick_autoattack():
        resumed = evaluated(evaluations.ALONE, tmp_path)
    assert resumed["verdicts"] == one["all attacks"]["verdicts"] and contents(tmp_path / "autoattack") == whole
    assert resumed["attacked"] == -(-len(whole) // 3)


def test_a_journal_does_not_depend_on_whether_ranks_trained_the_network():
    model = build_model("small", num_classes=5, in_channels=1)
    layers = _layers(model)
    with_global_norms(model, Ranks(0, 2))
    assert "Global" in repr(model) and _layers(model) == layers == repr(
        build_model("small", num_classes=5, in_channels=1)
    )
    assert _layers(nn.SyncBatchNorm(4)) == repr(nn.BatchNorm2d(4))


def test_an_attack_that_fails_on_one_rank_fails_on_all_and_costs_no_other(found, one):
    for rank in found:
        assert rank["broken"] == found[0]["broken"]
        assert rank["only attack"] == "no memory on rank 1"
        assert rank["clean"] == "no memory for a batch"
    assert found[0]["broken"]["failed"] == {"autoattack": "no memory on rank 1"}
    kept = {name: one["all attacks"]["verdicts"][name] for name in ("clean", "pgd2", "cw2")}
    assert found[0]["broken"]["verdicts"] == kept


def test_ranks_stop_soon_after_one_of_them_has_failed(found):
    assert all(rank["after a failure"] < len(QUICK) // len(found) for rank in found)


def test_a_training_on_ranks_validates_and_reports_by_shares_as_one_process(found, folder):
    if len(found) != 2:
        pytest.skip("trained on two ranks")
    first, second = (rank["trained"] for rank in found)
    assert first["report"] == second["report"]
    both = first["read"] & second["read"]
    assert first["read"].total() and second["read"].total() and not both.total()
    saved = json.loads((folder / "run" / "report.json").read_text())
    data = load_dataset("digits", imbalance_ratio=20)
    threat = evaluations.ThreatModel(eps=0.15)
    settings = {"attacks": ["clean", "pgd3"], "threat": threat, "n_examples": 20, "batch_size": 3, "name": "last"}
    assert evaluate(load_model(folder / "run" / "last"), data, **settings).to_json() == saved["last"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model for the digits, of random weights."""
    path = tmp_path_factory.mktemp("run") / "best"
    torch.manual_seed(0)
    save_model(build_model("small", num_classes=10, in_channels=1), path, extra={"dataset": "digits"})
    return path


def test_the_command_shows_and_writes_once_what_one_process_does(checkpoint, tmp_path):
    command = ["eval", str(checkpoint), "--attacks", "clean,pgd2", "--batch-size", "7", "--device", "cpu", "--json"]
    by_all = torchrun(2, "ltat", *command, str(tmp_path / "all.json"))
    assert by_all.returncode == 0, by_all.stderr
    by_one = CliRunner().invoke(main, [*command, str(tmp_path / "one.json")])
    assert (tmp_path / "all.json").read_bytes() == (tmp_path / "one.json").read_bytes()
    assert by_all.stdout == by_one.stdout
