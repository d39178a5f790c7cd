"""The page: its figures are those of the runs, and nothing stands on it that is not in the JSON."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from ltat.errors import LtatError
from ltat.reproduce.cost import Images
from ltat.reproduce.data import StandIn, read_stand_in
from ltat.reproduce.page import page
from ltat.reproduce.planning import Place, in_order, plan_target
from ltat.reproduce.registry import find_target
from ltat.reproduce.results import result_tree
from ltat.reproduce.running import carry_out
from ltat.reproduce.scales import SCALES
from ltat.reproduce.targets import Target
from ltat.sweeps import RunPlan, SweepReporter
from ltat.sweeps.running import states_of
from ltat.sweeps.state import Records
from tests.reproduce.stubs import Stub, write_run
from tests.reproduce.tables import published, table

OURS = {"natural": (70.0, 5.0), "pgd-at": (60.0, 25.0), "at-bsl": (65.0, 40.0)}


def accuracies(plan: RunPlan) -> tuple[float, float]:
    clean, tail = OURS[plan.settings["method"]]
    return clean + plan.settings["seed"]["train"], tail


def tree_of(target: Target, out: Path, seeds: int = 1, failing: str = "", scale: str = "paper") -> dict:
    place = Place(out, SCALES[scale])
    planned = plan_target(target, place, seeds)
    names = [plan.name for plan in in_order(planned) if failing and failing == plan.settings["method"]]
    reporter = SweepReporter(Console(file=io.StringIO()))
    states, _ = carry_out(in_order(planned), Stub(accuracies, names), place.runs, reporter=reporter)
    tree = result_tree(target, planned, states, place)
    assert json.loads(json.dumps(tree, allow_nan=False)) == tree
    return tree


def figure(tree: dict, label: str, column: str) -> dict:
    return next(row for row in tree["rows"] if row["label"] == label)["figures"]["last"][column]


def test_ours_stands_beside_the_published_figure_with_interval_and_difference(tmp_path: Path):
    tree = tree_of(table(), tmp_path)
    own = figure(tree, "at-bsl", "clean")
    assert own["ours"]["value"] == 65 and own["published"] == 80 and own["difference"] == -15
    assert own["verdicts"] == {"0": {"correct": 260, "n": 400}} and own["ours"]["kind"].startswith("Wilson")
    assert figure(tree, "at-bsl", "tail, PGD-2")["verdicts"]["0"] == {"correct": 16, "n": 40}
    text = page(tree)
    assert "| at-bsl | 1 | 65.00 (60.2 to 69.5) / 80.00 (-15.00) | 40.00 (26.3 to 55.4) / 40.00 (+0.00) |" in text
    assert "data digits: " in text and "3 of 3 runs are finished" in text


def test_the_order_is_judged_for_every_column(tmp_path: Path):
    tree = tree_of(table(), tmp_path)
    verdicts = {each["column"]: (each["verdict"], len(each["pairs"])) for each in tree["orderings"]}
    assert verdicts == {"clean": ("contradicted", 3), "tail, PGD-2": ("holds", 3)}
    text = page(tree)
    assert "| last | – | clean | 3 |" in text and "pgd-at is 10.00 above natural in print and -10.00" in text


def test_several_seeds_are_a_mean_with_students_interval(tmp_path: Path):
    own = figure(tree_of(table(), tmp_path, seeds=2), "natural", "clean")
    assert own["ours"]["value"] == 70.5 and own["ours"]["kind"].startswith("Student")
    assert list(own["verdicts"]) == ["0", "1"]


def test_every_row_gains_over_the_baseline_with_the_same_seed(tmp_path: Path):
    tree = tree_of(replace(table(), baseline="pgd-at"), tmp_path, seeds=2)
    gains = {(each["row"], each["column"]): each for each in tree["gains"]}
    assert {row for row, _ in gains} == {"natural", "at-bsl"}
    clean = gains["natural", "clean"]  # 70 and 71 minus 60 and 61: no spread, where the means have one
    assert clean["gain"]["value"] == clean["gain"]["low"] == clean["gain"]["high"] == 10 and clean["seeds"] == [0, 1]
    assert gains["natural", "tail, PGD-2"]["gain"]["value"] == -20
    text = page(tree)
    assert "## Gains over pgd-at" in text and "| natural | 2 | +10.00* (+10.0 to +10.0) | -20.00*" in text


def test_a_row_without_any_figure_is_listed_among_the_runs_alone(tmp_path: Path):
    unpublished = [replace(cell, published={}) for cell in table().cells]
    text = page(tree_of(table(*unpublished), tmp_path, failing="pgd-at"))
    assert "| natural | 1 |" in text and "| pgd-at |" not in text and "failed: planted failure" in text
    assert "/ published" not in text and "question mark" not in text


def test_a_table_without_a_baseline_shows_no_gains(tmp_path: Path):
    tree = tree_of(table(), tmp_path)
    assert tree["gains"] == [] and "Gains" not in page(tree)


def test_a_doubtful_figure_is_marked_and_is_no_part_of_the_order(tmp_path: Path):
    doubtful = published("natural", 95.0, 30.0, ("clean",), "a digit may be lost")
    rows = [replace(cell, published={"last": doubtful}) if cell.label == "natural" else cell for cell in table().cells]
    tree = tree_of(table(*rows), tmp_path)
    assert {each["column"]: len(each["pairs"]) for each in tree["orderings"]} == {"clean": 1, "tail, PGD-2": 3}
    text = page(tree)
    assert "/ 95.00? (-25.00)" in text and "- natural: a digit may be lost" in text


def test_a_failed_run_is_named_and_its_row_has_no_figure(tmp_path: Path):
    text = page(tree_of(table(), tmp_path, failing="pgd-at"))
    assert "| pgd-at | 0 | – / 70.00 | – / 35.00 |" in text and "failed: planted failure" in text


def test_the_report_of_a_run_that_failed_later_is_not_shown(tmp_path: Path):
    target, place = table(), Place(tmp_path, SCALES["paper"])
    planned = plan_target(target, place, 1)
    (plan,) = planned[0].runs
    write_run(plan, 70.0, 5.0)
    report = json.loads((plan.folder / "report.json").read_text())
    report["last"]["failed"] = {"autoattack": "no memory"}
    (plan.folder / "report.json").write_text(json.dumps(report))
    states = states_of([plan for own in planned for plan in own.runs], Records(place.runs))
    tree = result_tree(target, planned, states, place)
    assert figure(tree, "natural", "clean")["ours"] is None and tree["rows"][0]["runs"][0]["state"] != "finished"


def test_at_small_scale_only_the_order_is_compared(tmp_path: Path):
    cells = [replace(cell, recipe="unified/cifar10") for cell in table().cells]
    tree = tree_of(table(*cells), tmp_path, scale="small")
    text = page(tree)
    assert figure(tree, "at-bsl", "clean")["difference"] is None and "(-15.00)" not in text
    assert "only the order of the methods can be compared" in text and tree["orderings"]


def test_every_run_says_what_it_was(tmp_path: Path):
    (run, *_) = tree_of(table(), tmp_path)["rows"][0]["runs"]
    known = {name: run[name] for name in ("seed", "state", "commit", "machine", "device", "threads")}
    assert known == {"seed": 0, "state": "finished", "commit": "abc", "machine": "stub", "device": "cpu", "threads": 1}
    assert len(run["config_sha256"]) == 64 and run["image_passes"] > 0


def test_the_page_follows_the_json(tmp_path: Path):
    tree = tree_of(table(), tmp_path)
    text = page(tree)
    figure(tree, "at-bsl", "clean")["ours"]["value"] = 12.34
    tree["orderings"][0]["verdict"] = "unheard of"
    assert "12.34" in page(tree) and "unheard of" in page(tree) and "12.34" not in text


def test_a_set_in_the_place_of_another_must_have_its_images(tmp_path: Path):
    images = Images(find_images("ltat-sd/c100-ir10-rn18/at-bsl"), 10_000)
    place = Place(tmp_path, SCALES["small"], tmp_path, StandIn("npz", tmp_path, images, (32, 32, 3)))
    planned = plan_target(find_target("table5"), place, 1)
    assert {own.cell.group for own in planned if own.runs} == {"ratio 10"}
    assert "the row is trained on 12,608 training images of 100 classes" in planned[0].refused
    run = next(own for own in planned if own.runs).runs[0]
    data = run.settings["data"]
    assert (data["name"], data["dir"], data["imbalance_ratio"]) == ("npz", str(tmp_path), "natural")
    assert run.folder.parent.name == "small-npz"  # beside the runs on the set itself


def find_images(recipe: str) -> tuple[int, ...]:
    from ltat.reproduce.cost import images_of
    from ltat.reproduce.planning import row_settings
    from ltat.reproduce.targets import Cell

    return images_of(row_settings(Cell("", recipe))).counts


def test_a_set_in_the_place_of_another_is_counted_from_its_files(tmp_path: Path):
    for part, n in (("train", 6), ("test", 4)):
        images, labels = np.arange(192 * n).reshape(n, 8, 8, 3).astype(np.uint8), np.arange(n) % 2
        np.savez(tmp_path / f"{part}.npz", images=images, labels=labels)
    found = read_stand_in("npz", tmp_path)
    assert (found.images, found.shape) == (Images((3, 3), 4), (8, 8, 3))
    with pytest.raises(LtatError, match=r"is trained on 9 training images of 2 classes .* holds 6 training images"):
        found.require_images_of(Images((6, 3), 4))


def test_the_small_scale_has_the_settings_of_the_docs(tmp_path: Path):
    place = Place(tmp_path, SCALES["small"], tmp_path)

    def settings(target: str, label: str) -> dict:
        own = next(each for each in plan_target(find_target(target), place, 1) if each.cell.label == label)
        return own.runs[0].settings

    main = settings("table1", "self-distill")
    assert (main["model"]["name"], main["attack"]["steps"], main["train"]["epochs"]) == ("resnet8-s2", 5, 20)
    assert (main["teacher"]["epochs"], main["select"]["set"]) == (6, "val") and "metric" not in main["select"]
    assert main["eval"]["attacks"] == ["clean", "pgd20"] and main["schedule"]["milestones"] == [0.75, 0.9]
    assert (
        settings("table1", "REAT")["train"]["epochs"] == settings("table1", "RoBal")["train"]["epochs"] == 16
    )  # of 80
    assert settings("table9", "AT-BSL, 1.5 × epochs")["train"]["epochs"] == 30
    assert settings("table9", "REAT, 1.5 × epochs")["train"]["epochs"] == 24


def test_the_paper_scale_changes_nothing(tmp_path: Path):
    place = Place(tmp_path, SCALES["paper"], tmp_path)
    (own,) = [each for each in plan_target(find_target("table1"), place, 1) if each.cell.label == "self-distill"]
    settings = own.runs[0].settings
    assert (settings["model"]["name"], settings["train"]["epochs"], settings["select"]["set"]) == (
        "resnet18",
        100,
        "test",
    )
    assert settings["eval"]["attacks"] == ["clean", "pgd20", "autoattack"] and settings["data"]["dir"] == str(tmp_path)
