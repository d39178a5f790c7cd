"""The targets of IGDM and of TAET: a base that differs by more than the term, another test set or another radius."""

from pathlib import Path

import numpy as np
import pytest

from ltat.config import RunConfig
from ltat.config.resolving import for_dataset
from ltat.reproduce.planning import Place, plan_target, row_settings
from ltat.reproduce.registry import all_targets, find_target
from ltat.reproduce.results import images_behind, result_tree
from ltat.reproduce.scales import SCALES
from ltat.reproduce.targets import BASELINE, MAIN
from ltat.sweeps import states_of
from ltat.sweeps.state import Records
from ltat.training.run_folder import differing_settings

TARGETS = all_targets()
IGDM = [name for name in TARGETS if name.startswith("igdm-")]
TAET = [name for name in TARGETS if name.startswith("taet-")]


def configs(name: str) -> dict[str, RunConfig]:
    return {cell.label: for_dataset(row_settings(cell)).config for cell in find_target(name).cells}


def ratio_of(name: str) -> float | str:
    return float(name.rpartition("-ir")[2]) if "-ir" in name else "natural"


def test_every_table_of_both_papers_is_there():
    assert set(IGDM) == {f"igdm-{data}-{network}" for data in ("c10", "c100") for network in ("rn18", "mnv2")}
    long_tailed = {f"taet-c10-ir{ratio}" for ratio in (10, 20, 50, 100)} | {
        f"taet-c100-ir{ratio}" for ratio in (10, 50, 100)
    }
    assert set(TAET) == {*long_tailed, "taet-dermamnist"}


@pytest.mark.parametrize("name", IGDM)
def test_a_base_differs_from_its_method_by_the_weight_of_the_term_alone(name: str):
    found = configs(name)
    assert {"ARD", "RSLAD", "AdaAD"} <= set(found)
    for label in ("ARD", "RSLAD", "AdaAD"):
        with_term, without = (found[each].model_dump(mode="json") for each in (f"{label} + IGDM", label))
        assert differing_settings(with_term, without) == ["igdm.alpha"] and without["igdm"]["alpha"] == 0


@pytest.mark.parametrize("name", IGDM)
def test_the_teacher_is_one_of_the_data_set(name: str):
    for config in configs(name).values():
        teacher = config.model_dump(mode="json")["teacher"]
        assert teacher["model"] == "wrn28-10-silu" and teacher["normalize"] == config.data.name
        assert f"/models/{config.data.name}/Linf/" in teacher["path"] and teacher["path"].endswith(".pt")


@pytest.mark.parametrize(("name", "figures"), [("igdm-c100-rn18", (28.06, 30.32)), ("igdm-c100-mnv2", (26.18, 29.52))])
def test_the_headline_is_that_of_the_abstract(name: str, figures: tuple[float, float]):
    cells = {cell.rank: cell for cell in find_target(name).cells if cell.published}
    assert tuple(cells[rank].published["last"].figures["aa"] for rank in (BASELINE, MAIN)) == figures
    assert all(cell.published["last"].doubt for cell in cells.values())


@pytest.mark.parametrize("name", TAET)
def test_rows_share_data_radius_and_attacks(name: str):
    found = configs(name)
    assert len(found) == 7
    assert len({config.data.model_dump_json() for config in found.values()}) == 1
    assert {config.attack.eps for config in found.values()} == {8 / 255}
    assert {tuple(config.eval.attacks) for config in found.values()} == {found["TAET"].eval.attacks}
    assert {config.model.name for config in found.values()} == {"resnet18"}


@pytest.mark.parametrize("name", TAET)
def test_every_column_has_its_attack_and_the_test_set_the_ratio_of_training(name: str):
    config, columns = configs(name)["TAET"], find_target(name).columns
    assert {column.attack for column in columns} == {each.partition("@")[0] for each in config.eval.attacks}
    assert {column.group for column in columns} == {"balanced"}
    assert config.data.test_imbalance_ratio == config.data.imbalance_ratio == ratio_of(name)


def test_a_mean_over_classes_counts_as_many_images_as_give_its_variance():
    assert images_behind({"overall": 400, "per_class": [100] * 4}, "balanced") == 400
    rare = {"overall": 1010, "per_class": [1000, 10, 0]}
    assert images_behind(rare, "balanced") == round(4 / (1 / 1000 + 1 / 10)) == 40
    assert images_behind(rare, "overall") == 1010


def test_a_set_that_lies_in_files_is_counted_from_them(tmp_path: Path):
    labels = np.repeat(np.arange(7), [30, 12, 10, 8, 6, 5, 4])[:, None]
    random, arrays = np.random.default_rng(0), {}
    for part in ("train", "val", "test"):
        arrays[f"{part}_images"] = random.integers(0, 256, (75, 28, 28, 3), np.uint8)
        arrays[f"{part}_labels"] = labels
    np.savez(tmp_path / "dermamnist.npz", **arrays)
    place = Place(tmp_path, SCALES["paper"], tmp_path / "dermamnist.npz")
    planned = plan_target(find_target("taet-dermamnist"), place, 1)
    states = states_of([run for own in planned for run in own.runs], Records(place.runs))
    tree = result_tree(find_target("taet-dermamnist"), planned, states, place)
    (data,) = tree["data"]
    assert data["name"] == "medmnist" and data["counts"] == [30, 12, 10, 8, 6, 5, 4] and data["test"] == 75
    assert tree["rows"][0]["runs"][0]["image_passes"] > 0


@pytest.mark.parametrize("name", TAET)
def test_no_row_of_taet_has_an_average_or_fewer_images_than_another(name: str):
    found = configs(name).values()
    assert {(config.average.kind, config.select.set) for config in found} == {("none", "none")}
