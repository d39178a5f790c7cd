"""The GPU command on a machine that has torch and little else, without network and without .git.

python -m tests.stress.bare_machine

The environment is this one without the packages that such a machine lacks. First they are missing altogether, and only
the tests that need them may fail for it; then they lie in a folder that PYTHONPATH names, and nothing may. There is no
GPU here: what asks for one must say so, in a summary that is whole.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from bench.gpu import ROOT

LACKING = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection", "tomli-w", "pyautoattack")
PARTS = ("ceilings", "pgd_step", "training")
TINY = ("model.name=small", "train.batch_size=8", "teacher.batch_size=4", "attack.steps=1", "eval.n_examples=4")


def entries(package: str) -> set[str]:
    """What an installed package has put into site-packages, by the names at its top."""
    files = metadata.files(package) or []
    return {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}


def bare_environment(folder: Path) -> tuple[Path, Path]:
    """A Python without the lacking packages, and a folder that holds them."""
    ours = Path(metadata.distribution("torch").locate_file(""))
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    brought = folder / "site"
    brought.mkdir()
    lacking = set().union(*map(entries, LACKING))
    for entry in ours.iterdir():
        if not entry.name.startswith(("ltat", "__editable__", "_virtualenv")):
            ((brought if entry.name in lacking else site) / entry.name).symlink_to(entry)
    return folder / "venv" / "bin" / "python", brought


def copy_of_the_tree(folder: Path) -> Path:
    """The files that git tracks, with the kernels that are built, and no history."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in [*listed.splitlines(), *(f"ltat/{path.name}" for path in (ROOT / "ltat").glob("*.so"))]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def run(python: Path, tree: Path, words: Sequence[str], path: str = "") -> str:
    """What a module of the tree prints in the bare environment."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [str(python), "-m", *words]
    env["PYTHONPATH"] = path
    return subprocess.run(command, cwd=tree, env=env, text=True, capture_output=True, check=False).stdout


def outcomes(out: Path) -> dict[str, dict[str, str]]:
    """The parts of a run of the GPU command, by name; its page of results must be there too."""
    assert "| part | state |" in (out / "summary.md").read_text()
    return {part["name"]: part for part in json.loads((out / "summary.json").read_text())["parts"]}


def write_images(folder: Path) -> Path:
    """Two classes of random images in the npz layout."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name, n in (("train", 32), ("test", 8)):
        images = generator.integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=np.arange(n) % 2)
    return folder


def without_packages(python: Path, tree: Path, out: Path) -> None:
    """They are named with the lines that bring them, and the other tests are collected."""
    said = run(python, tree, ["bench.gpu", str(out), "--only", "tests", "--minutes", "4", "--commit", "none"])
    first = said.splitlines()[0]
    assert first.startswith("missing here: ") and all(
        name in first for name in ("pydantic", "tomli-w", "pyautoattack")
    ), said
    told = outcomes(out)["tests"]["last_line"]
    assert "error" in told and "skipped" in told, told  # here every test of a GPU is skipped


def with_packages(python: Path, tree: Path, brought: Path, folder: Path) -> None:
    """Nothing is missing any more, and the main method trains."""
    only = [word for part in PARTS for word in ("--only", part)]
    said = run(python, tree, ["bench.gpu", str(folder / "out"), *only, "--minutes", "2"], str(brought))
    assert "missing here" not in said, said
    assert set(outcomes(folder / "out")) == set(PARTS), said
    logs = "".join(log.read_text() for log in (folder / "out" / "logs").iterdir())
    assert "No module named" not in logs and "NVIDIA" in logs, logs
    settings = [word for setting in TINY for word in ("--set", setting)]
    place = ["--data-dir", str(write_images(folder / "data")), "--device", "cpu", "--epochs", "1"]
    said = run(python, tree, ["bench.short_training", str(folder / "run"), *place, *settings], str(brought))
    assert "teacher epoch 1" in said and "student epoch 1" in said, said


def main() -> None:
    if torch.cuda.is_available():
        raise SystemExit("this rehearsal is for a machine without a GPU; run python -m bench.gpu OUT itself")
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        python, brought = bare_environment(folder)
        tree = copy_of_the_tree(folder / "tree")
        without_packages(python, tree, folder / "missing")
        print("without the packages: they are named, and what does not need them runs", flush=True)
        with_packages(python, tree, brought, folder)
        print("with the packages beside it: nothing is missing, and both stages train", flush=True)


if __name__ == "__main__":
    main()
