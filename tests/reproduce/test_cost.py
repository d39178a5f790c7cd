"""The cost in image passes, by which recipes of equal compute are matched."""

import pytest

from ltat.config import Asked, RunConfig, load_config
from ltat.config.resolving import resolve
from ltat.methods import find_method
from ltat.reproduce.cost import FORWARD, Images, by_epoch, images_of, passes_of_step, run_cost

MAIN = "ltat-sd/c10-ir50-rn18/self-distill"
AT_BSL = "ltat-sd/c10-ir50-rn18/at-bsl"


def asked(recipe: str, **settings: object) -> Asked[RunConfig]:
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    return load_config(lambda name: find_method(name).Config, recipe=recipe, settings=dotted)


def passes(recipe: str, epoch: int = 1, **settings: object) -> float:
    return passes_of_step(resolve(asked(recipe, **settings), 10), epoch)


def test_the_papers_run_is_26_million_passes():
    cost = run_cost(asked(MAIN))
    assert cost.training / 1e6 == pytest.approx(26.0, abs=0.05)
    assert cost.teacher == 30 * 25_000 * 11 and cost.student == pytest.approx(100 * 13_996 * (12 + 2 * FORWARD))
    assert run_cost(asked(AT_BSL)).training == 100 * 13_996 * 11


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        (AT_BSL, 11),
        ("ltat-sd/c10-ir50-rn18/mart", 12),
        ("ltat-sd/c10-ir50-rn18/awp", 12),
        ("ltat-sd/c10-ir50-rn18/robal", 7 + 2 * FORWARD),
        (MAIN, 12 + 2 * FORWARD),
        ("adaad+igdm/faithful", 24 + FORWARD),  # its attack differentiates the teacher, too
    ],
)
def test_a_step_costs_what_it_computes(recipe: str, expected: float):
    assert passes(recipe) == pytest.approx(expected, abs=1e-5)


def test_what_changes_over_the_epochs_is_counted_in_its_epochs():
    assert [passes(AT_BSL, epoch, awp__gamma=0.005, awp__warmup=10) for epoch in (1, 10, 11, 100)] == [11, 11, 12, 12]
    before, after = run_cost(asked(AT_BSL)), run_cost(asked(AT_BSL, awp__gamma=0.005, awp__warmup=10))
    assert after.training - before.training == 90 * 13_996


def test_a_change_is_found_by_halves():
    asked_for = []

    def passes_in(epoch: int) -> float:
        asked_for.append(epoch)
        return 1.0 if epoch <= 40 else 11.0

    assert by_epoch(passes_in, 1, 100) == [1.0] * 40 + [11.0] * 60 and len(set(asked_for)) < 20


def test_selection_and_evaluation_are_apart():
    on_test, without = run_cost(asked(AT_BSL)), run_cost(asked(AT_BSL, select__set="none"))
    assert on_test.selection == pytest.approx(100 * 10_000 * (20 + 2 * FORWARD)) and without.selection == 0
    assert on_test.training == without.training and on_test.evaluation == pytest.approx(2 * without.evaluation)
    beside = run_cost(asked(AT_BSL, average__kind="ema", average__raw=True))
    assert (beside.training, beside.selection) == (on_test.training, 2 * on_test.selection)
    assert beside.evaluation == 2 * on_test.evaluation
    held = run_cost(asked(AT_BSL, select__set="val"))
    assert held.training < without.training and held.selection < on_test.selection / 10


def test_a_given_teacher_is_not_paid_for(tmp_path):
    assert run_cost(asked(MAIN, teacher__path=str(tmp_path / "teacher"))).teacher == 0


def test_images_follow_from_the_ratio_without_files():
    assert sum(images_of(asked(AT_BSL)).counts) == 13_996
    assert images_of(asked(AT_BSL, data__test_imbalance_ratio=50)).test < 3000
    assert len(images_of(asked("unified/digits", method="at-bsl")).counts) == 10
    shorter = run_cost(asked(AT_BSL), Images((10,) * 10, 100))
    assert shorter.training == 100 * 100 * 11
