"""A long-tailed test set: which images it has, and that everything that uses it takes the same ones and says so."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from ltat.cli.main import main
from ltat.config import load_config
from ltat.data import load_dataset, longtail_counts, longtail_indices
from ltat.errors import LtatError
from ltat.evaluation import evaluate
from ltat.methods import find_method
from ltat.models import build_model, read_card, save_model
from ltat.training import train
from ltat.training.run_data import load_data
from tests.training.tiny import complete_config, tiny_config

RATIO = 4.0
WHOLE = load_dataset("digits")
LONG = load_dataset("digits", test_imbalance_ratio=RATIO)


def test_the_test_set_is_thinned_as_a_training_set_is():
    expected = WHOLE.test.indices[longtail_indices(WHOLE.test.labels, RATIO)]
    assert LONG.test.indices.tolist() == expected.tolist()
    assert LONG.test.counts.tolist() == longtail_counts(40, 10, RATIO).tolist()
    assert (LONG.test_imbalance_ratio, WHOLE.test_imbalance_ratio) == (RATIO, None)


def test_the_training_set_stays_as_it_is():
    np.testing.assert_array_equal(LONG.train.indices, WHOLE.train.indices)


@pytest.mark.parametrize(("ratio", "images"), [(10, 4084), (20, 3401), (50, 2795), (100, 2478)])
def test_taets_test_sets_have_the_published_sizes(ratio: int, images: int):
    labels = np.repeat(np.arange(10), 1000)
    assert len(longtail_indices(labels, ratio)) == images


def test_it_follows_the_seed_the_profile_and_the_class_order_of_the_training_set():
    settings = {"imbalance_ratio": RATIO, "imbalance": "step", "class_order": "permuted", "subset_seed": 3}
    data = load_dataset("digits", test_imbalance_ratio=RATIO, **settings)
    large = data.train.counts > data.train.counts.mean()
    assert (data.test.counts[large] == 40).all() and (data.test.counts[~large] == 10).all()


@pytest.mark.parametrize(
    ("ratio", "fragment"), [(0.1, r"ratio 0\.1"), (1000, "class 5 would keep 0 of 40"), ("x", "'x'")]
)
def test_a_ratio_out_of_range_is_refused(ratio: float | str, fragment: str):
    with pytest.raises(LtatError, match=fragment):
        load_dataset("digits", test_imbalance_ratio=ratio)


@pytest.mark.parametrize("ratio", ["0.02", "nan", "'strong'"])
def test_a_setting_out_of_range_is_refused_by_its_name(ratio: str):
    with pytest.raises(LtatError, match=r"data\.test_imbalance_ratio"):
        load_config(lambda name: find_method(name).Config, assignments=[f"data.test_imbalance_ratio={ratio}"])


def test_a_held_out_part_is_of_the_training_set_and_the_test_set_stays_long_tailed():
    data = load_data(complete_config("data.test_imbalance_ratio=4", "select.set=val"))
    assert data.val is not None and not set(data.val.indices) & set(LONG.test.indices)
    assert data.dataset.test.indices.tolist() == LONG.test.indices.tolist()


# --- what a report says


def flags_on_a_long_tail(flags: list[str]) -> list[str]:
    return [flag for flag in flags if flag.startswith("test set: a long-tailed subset")]


def test_an_evaluation_says_that_its_test_set_is_long_tailed():
    model = build_model("small", num_classes=10, in_channels=1)
    (flag,) = flags_on_a_long_tail(evaluate(model, LONG, attacks="clean").flags)
    assert f"{len(LONG.test)} images, imbalance ratio 4;" in flag
    assert not flags_on_a_long_tail(evaluate(model, WHOLE, attacks="clean").flags)


def saved(folder: Path, **extra: Any) -> Path:
    extra = {"dataset": "digits", "imbalance_ratio": 20.0, "test_imbalance_ratio": RATIO} | extra
    save_model(build_model("small", num_classes=10, in_channels=1), folder / "best", extra=extra)
    return folder / "best"


def evaluated(checkpoint: Path, *arguments: str) -> dict[str, Any]:
    file = checkpoint.with_name("report.json")
    command = ["eval", str(checkpoint), "--attacks", "clean", "--device", "cpu", "--json", str(file), *arguments]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text())


def test_an_evaluation_takes_the_test_set_of_the_card_unless_another_is_named(tmp_path: Path):
    model = saved(tmp_path)
    report = evaluated(model)
    assert report["clean"]["n"]["per_class"] == LONG.test.counts.tolist() and flags_on_a_long_tail(report["flags"])
    whole = evaluated(model, "--test-imbalance-ratio", "natural")
    assert whole["n"] == 400 and not flags_on_a_long_tail(whole["flags"])
    assert evaluated(model, "--test-imbalance-ratio", "2")["n"] == longtail_counts(40, 10, 2).sum()


def test_an_evaluation_takes_the_profile_of_the_card(tmp_path: Path):
    report = evaluated(saved(tmp_path, imbalance="step"))
    assert report["clean"]["n"]["per_class"] == [40] * 5 + [10] * 5


def test_a_card_with_a_ratio_that_is_none_is_refused(tmp_path: Path):
    done = CliRunner().invoke(main, ["eval", str(saved(tmp_path, test_imbalance_ratio=0.5)), "--attacks", "clean"])
    assert done.exit_code == 2 and "imbalance ratio 0.5" in done.output


def test_a_run_reports_on_it_lists_its_images_and_is_evaluated_on_the_same(tmp_path: Path):
    n = f"eval.n_examples={len(LONG.test)}"
    config = tiny_config("method=pgd-at", "data.test_imbalance_ratio=4", "train.epochs=1", "select.set=none", n)
    report = train(config, tmp_path / "run")["last"]
    assert report.labels.tolist() == LONG.test.labels.tolist() and flags_on_a_long_tail(report.flags)
    indices = json.loads((tmp_path / "run/indices.json").read_text())
    assert indices["test"]["indices"] == LONG.test.indices.tolist()
    assert read_card(tmp_path / "run/last").extra["test_imbalance_ratio"] == RATIO
    assert evaluated(tmp_path / "run/last")["clean"]["n"] == report.to_json()["clean"]["n"]
