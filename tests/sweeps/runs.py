"""Runs of a sweep small enough to start in processes of their own."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ltat.sweeps import RunPlan, plan_run
from tests.training.tiny import tiny_config

QUICK = ("train.epochs=2", "attack.steps=1", "attack.mode=eval", "attack.start=gauss", "optim.wd=5e-4")
STUDENT = ("method=ard", "teacher.train=balanced", "teacher.epochs=1")
TIMINGS = {"seconds", "images_per_s"}

BREAKING = '''
import torch.nn.functional as F
from ltat.config import RunConfig
from ltat.methods import LossTerms, Method

class Breaking(Method):
    """Fails after the rehearsal, in the first epoch."""

    Config = RunConfig

    def loss(self, step):
        if len(step.batch.labels) > 2:
            raise RuntimeError("planted failure")
        logits = step.model(step.x_adv)
        return LossTerms(F.cross_entropy(logits, step.batch.labels), logits.detach(), {})
'''


def tiny_plan(out: Path, name: str, *settings: str, row: str = "") -> RunPlan:
    return plan_run(name, out / name, tiny_config(*QUICK, *settings), row)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch has one thread, as the runs of a sweep with ``threads=1``; the bits depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMINGS} for line in lines]


def epochs(folder: Path) -> int:
    """How many epochs the metrics have."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def assert_same_bits(one: Path, other: Path) -> None:
    """The same weights, cards, metrics and report."""
    for file in (*one.glob("*.safetensors"), one / "report.json", one / "config.toml"):
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name
    assert rows(one) == rows(other)
