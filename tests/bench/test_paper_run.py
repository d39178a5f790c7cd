"""The main method's training for a GPU machine: as published, cut off and gone on with, on packed images."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import paper_run
from bench._pack import pack, unpack
from bench._parts import PACKED
from bench.rows import read_rows
from bench.targets import TARGETS
from ltat.config import load_config
from ltat.config.recipes import find_recipe
from ltat.errors import LtatError
from ltat.methods import find_method

TINY = ("model.name=small", "train.batch_size=4", "teacher.batch_size=2", "attack.steps=1", "eval.n_examples=2")
WHOLE_RUN = next(target for target in TARGETS if "30 + 100" in target.case)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Trains on a few random images; returns the lines of metrics."""
    monkeypatch.setattr(paper_run, "COUNTS", (4, 4))
    monkeypatch.setenv("LTAT_BENCH_RESULTS", str(tmp_path / "results"))

    def called(*options: str, code: int = 0) -> list[dict]:
        assigned = [word for setting in TINY for word in ("--set", setting)]
        done = CliRunner().invoke(paper_run.main, [str(tmp_path / "out"), "--device=cpu", *options, *assigned])
        assert done.exit_code == code, done.output
        return [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]

    return called


def cut_off(*given: object) -> None:
    raise KeyboardInterrupt


def test_a_training_that_is_cut_off_goes_on_with_its_next_epoch(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patched:
        patched.setattr("ltat.training.run.write_report", cut_off)
        first = run("--epochs=1", code=1)
    assert [(row["stage"], row["epoch"]) for row in first] == [("teacher", 1), ("student", 1)]
    assert run("--epochs=1") == first  # with the seconds that these epochs took, and no other
    (row,) = read_rows(tmp_path / "results" / "end_to_end.csv")
    assert row.case == "CIFAR-10-LT, small, 1 + 1 epochs of self-distill"
    assert row.median == pytest.approx(1e6 * sum(each["seconds"] for each in first), rel=1e-3)


def test_a_run_that_came_back_without_its_weights_begins_anew_also_at_another_place(run, tmp_path: Path):
    first = run("--epochs=1")
    for file in [*(tmp_path / "out").glob("*.pt"), *(tmp_path / "out").glob("*.safetensors")]:
        file.unlink()
    shutil.move(tmp_path / "random-images", tmp_path / "moved")
    again = run("--epochs=1", f"--data-dir={tmp_path / 'moved'}")
    assert [row["loss"] for row in again] == [row["loss"] for row in first]


def asked(epochs: int | None):
    given = paper_run.settings(Path("images"), "cuda", epochs)
    kind = lambda method: find_method(method).Config  # noqa: E731
    return load_config(kind, recipe=paper_run.RECIPE, assignments=given).config


def test_the_whole_training_is_the_published_one():
    config, published = asked(None), find_recipe(paper_run.RECIPE)
    assert config.method == published["method"] and config.model.name == published["model"]["name"] == "resnet18"
    assert WHOLE_RUN.case.endswith(f"{config.teacher.epochs} + {config.train.epochs} epochs of self-distill")
    assert (config.train.batch_size, config.teacher.batch_size, config.attack.steps) == (128, 32, 10)
    assert config.train.graph is True and config.train.precision == "bf16"
    assert config.select.set == "test" and config.select.from_epoch == 0.75 * config.train.epochs


def test_a_shortened_training_has_one_epoch_of_the_teacher():
    config = asked(4)
    assert (config.teacher.epochs, config.train.epochs, config.select.set) == (1, 4, "none")


def images(folder: Path, n: int = 5) -> Path:
    """Real shades and noise, in the npz layout."""
    folder.mkdir()
    shades = np.arange(n * 32 * 32 * 3).reshape(n, 32, 32, 3) // 12 % 256
    noise = np.random.default_rng(0).integers(0, 256, shades.shape)
    for name, values in (("train", np.where(np.arange(n)[:, None, None, None] % 2, shades, noise)), ("test", shades)):
        arrays = {"images": values.astype(np.uint8), "labels": np.arange(n) % 2, "class_names": np.array(["a", "b"])}
        np.savez(folder / f"{name}.npz", **arrays)
    return folder


def test_packed_images_are_the_same_to_the_last_bit(tmp_path: Path):
    given, brought = images(tmp_path / "given"), tmp_path / "brought"
    brought.mkdir()
    pack(given, brought)
    unpack(brought, tmp_path / "again")
    for name in PACKED:
        before, after = (dict(np.load(folder / f"{name}.npz")) for folder in (given, tmp_path / "again"))
        assert before.keys() == after.keys()
        for key, values in before.items():
            assert values.dtype == after[key].dtype and np.array_equal(values, after[key]), key


def test_packed_images_are_unpacked_beside_the_run_once_and_never_mixed_with_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(paper_run, "COUNTS", (4, 4))
    brought = tmp_path / "brought"
    brought.mkdir()
    pack(images(tmp_path / "given"), brought)
    random, unpacked = paper_run.npz_folder(None, tmp_path), paper_run.npz_folder(brought, tmp_path)
    assert len(np.load(random / "train.npz")["labels"]) == 8 and len(np.load(unpacked / "train.npz")["labels"]) == 5
    written = (unpacked / "train.npz").stat().st_mtime_ns
    assert paper_run.npz_folder(brought, tmp_path) == unpacked
    assert (unpacked / "train.npz").stat().st_mtime_ns == written
    assert paper_run.npz_folder(tmp_path / "given", tmp_path) == tmp_path / "given"


def test_images_that_cannot_be_packed_are_refused_by_their_file(tmp_path: Path):
    np.savez(tmp_path / "train.npz", images=np.zeros((2, 8, 8, 1), np.uint8), labels=np.arange(2))
    with pytest.raises(LtatError, match=r"train\.npz holds no images uint8 \[N, H, W, 3\]"):
        pack(tmp_path, tmp_path)
