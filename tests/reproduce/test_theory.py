"""Theorem 1 and Figures 2 to 4 as targets: a claim that fails in silence, runs that are not the figure's."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from ltat.cli.reproduce import write_page
from ltat.config import load_config
from ltat.methods import find_method
from ltat.reproduce.planning import Place, plan_target
from ltat.reproduce.registry import find_target
from ltat.reproduce.scales import SCALES
from ltat.reproduce.theory import accuracies, described
from ltat.sweeps import states_of
from ltat.sweeps.state import Records
from ltat.theory import TwoClasses, theorem1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("ltat.reproduce.theory.theorem1", lambda: theorem1((1, 10), samples=(1_000,), repeats=8))


def test_the_theorem_is_written_whole_and_said(tmp_path: Path, quick: None):
    lines = find_target("theorem1").compute(tmp_path)
    result = json.loads((tmp_path / "theorem1.json").read_text())
    assert sum(line.startswith("holds: ") for line in lines) == len(result["checks"]) == 6
    assert "r = 10  robust  58.47 (" in lines[-1]
    assert described(result) == lines


def test_a_claim_that_fails_is_shouted(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(TwoClasses, "offset", lambda own, radius: 0.3)
    lines = find_target("theorem1").compute(tmp_path)
    assert any(line.startswith("DOES NOT HOLD: Monte-Carlo agrees") for line in lines)


def test_the_pictures_are_written(tmp_path: Path, quick: None):
    pytest.importorskip("matplotlib")
    for name in ("figure2", "figure3"):
        assert f"{name}.svg" in find_target(name).compute(tmp_path)[0]
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()


@pytest.mark.parametrize(
    ("name", "eps", "data"), [("figure4", 2 / 255, "cifar10"), ("figure4-digits", 0.0375, "digits")]
)
def test_figure_4_compares_two_trainings_at_one_radius(name: str, eps: float, data: str):
    target = find_target(name)
    asked = [
        load_config(lambda method: find_method(method).Config, recipe=each.recipe, settings=dict(each.settings))
        for each in target.cells
    ]
    configs = [each.config for each in asked]
    assert {each.method for each in configs} == {"natural", "pgd-at"} and {each.data.name for each in configs} == {data}
    assert all(
        each.attack.eps == pytest.approx(eps) and each.attack.step_size == pytest.approx(eps / 4) for each in configs
    )
    assert [each.data.imbalance_ratio for each in configs][::2] == [each.data.imbalance_ratio for each in configs][1::2]
    assert {1, 50} <= {each.data.imbalance_ratio for each in configs}


def finished(label: str, ratio: float, correct: int) -> dict:
    figure = {"verdicts": {"0": {"correct": correct, "n": 40}, "1": {"correct": correct + 1, "n": 40}}}
    columns = ("clean", "PGD-20", "tail, clean", "tail, PGD-20")
    return {
        "label": label,
        "settings": {"data.imbalance_ratio": ratio},
        "figures": {"last": dict.fromkeys(columns, figure)},
    }


def test_figure_4_is_drawn_of_what_is_finished(tmp_path: Path):
    pytest.importorskip("matplotlib")
    waiting = finished("pgd-at", 50, 0)
    waiting["figures"]["last"] = {name: {"verdicts": {}} for name in waiting["figures"]["last"]}
    rows = accuracies({"rows": [finished("natural", 1, 30), finished("natural", 50, 10), waiting]})
    assert rows[0] == {"method": "natural", "ratio": 1.0, "attack": "clean", "overall": [75, 77.5], "tail": [75, 77.5]}
    assert len(rows) == 4
    picture = find_target("figure4").picture
    picture(tmp_path / "some.svg", {"rows": [finished("natural", 1, 30), finished("natural", 50, 10), waiting]})
    assert ">natural, PGD-20<" in (tmp_path / "some.svg").read_text()
    picture(tmp_path / "none.svg", {"rows": [waiting]})
    assert not (tmp_path / "none.svg").exists()


def test_the_command_draws_the_picture_beside_the_page(tmp_path: Path):
    drawn = []
    target = replace(find_target("figure4-digits"), picture=lambda path, tree: drawn.append((path, tree["target"])))
    place = Place(tmp_path, SCALES["paper"])
    planned = plan_target(target, place, 1)
    write_page(target, planned, states_of([run for own in planned for run in own.runs], Records(place.runs)), place)
    assert drawn == [(place.runs / "figure4-digits.svg", "figure4-digits")]
