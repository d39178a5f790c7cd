"""A run small enough to repeat many times, on real digits."""

from pathlib import Path
from typing import Any

from ltat.config import Asked, RunConfig, load_config
from ltat.config.resolving import resolve
from ltat.methods import find_method
from ltat.training.state_file import read_state

TINY = [
    "data.name=digits",
    "data.imbalance_ratio=20",
    "model.name=small",
    "attack.eps=0.15",
    "attack.step_size=0.05",
    "attack.steps=2",
    "train.epochs=3",
    "train.batch_size=64",
    "train.device=cpu",
    "select.metric=pgd2",
    "eval.n_examples=20",
    'eval.attacks=["clean", "pgd2"]',
]


def tiny_config(*assignments: str) -> Asked[RunConfig]:
    given = [*TINY, *assignments]
    if not any(a.startswith("method=") and a != "method=self-distill" for a in given):
        given = ["teacher.epochs=2", *given]
    return load_config(lambda name: find_method(name).Config, assignments=given)


def complete_config(*assignments: str) -> RunConfig:
    return resolve(tiny_config(*assignments), num_classes=10)


def saved_state(folder: Path, name: str = "state.pt") -> dict[str, Any]:
    return read_state(folder / name)
