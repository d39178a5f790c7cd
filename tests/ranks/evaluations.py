"""Evaluations that are carried out by one process and by several ranks, and must end alike."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from torch import Tensor, nn

from ltat import evaluate
from ltat.attacks import ThreatModel, official
from ltat.data import Split
from ltat.data.images import as_floats
from ltat.evaluation.attacks import AttackInputs
from ltat.evaluation.report import Evaluation
from ltat.joint_work import failing_together, over_ranks
from ltat.ranks import ALONE, Ranks
from ltat.training import train
from tests.training.tiny import tiny_config

IMAGES, CLASSES = 45, 5
THREAT = ThreatModel(eps=0.02)
ATTACKS = ("clean", "pgd2", "cw2", "lsa2", "tenfold2", "autoattack")
BATCH = 4  # with an uneven last one
WHOLE = 64  # one batch, so that all ranks but one have none
QUICK = range(20_000)
BUILD, RUN_STAGE, READ = official.build, official.run_stage, AttackInputs.read


class Flagged(nn.Module):
    """A small network that is undefined on some images, and without a gradient on others."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, C]."""
        corner = x[:, 0, 0, 0].detach()
        rounded = torch.where((corner > 0.6)[:, None, None, None], (x * 16).round() / 16, x)
        logits: Tensor = self.body(rounded)
        return torch.where((corner < 0.1)[:, None], torch.nan, logits)


@contextmanager
def quick_autoattack() -> Iterator[None]:
    """Inside, AutoAttack takes a few steps."""

    def build(*arguments: Any, **settings: Any) -> Any:
        package = BUILD(*arguments, **settings)
        package.square.n_queries, package.fab.n_iter = 10, 2
        package.apgd.n_iter = package.apgd_targeted.n_iter = 4
        return package

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "build", build)
        yield


def set_up(kind: str = "plain") -> tuple[nn.Module, Split]:
    """A network and images, most of which it classifies correctly and some of which AutoAttack fools."""
    torch.manual_seed(0)
    model = Flagged() if kind == "flagged" else Flagged().body
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 3), dtype=np.uint8)
    with torch.no_grad():
        labels = model.eval()(as_floats(images)).argmax(1).numpy()
    labels[::11] = (labels[::11] + 1) % CLASSES
    return model, Split(images, labels, CLASSES, np.arange(IMAGES))


def told(evaluation: Evaluation) -> dict[str, Any]:
    """All that an evaluation says, as plain values."""
    verdicts = {name: outcome.correct.tolist() for name, outcome in evaluation.outcomes.items()}
    return {"verdicts": verdicts, "json": evaluation.to_json(), "failed": evaluation.failed}


class Record:
    """What one rank did: the batches that it read and attacked, and the progress it reported."""

    def __init__(self) -> None:
        self.read: Counter[tuple[int, ...]] = Counter()
        self.attacked = 0
        self.progress: list[tuple[str, int, int]] = []

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Inside, the record is kept."""

        def read(inputs: AttackInputs, batch: np.ndarray) -> tuple[Tensor, Tensor]:
            if batch.tolist() != [0]:  # read for the shape of the logits
                self.read[tuple(batch.tolist())] += 1
            return READ(inputs, batch)

        def run_stage(*arguments: Any) -> Any:
            self.attacked += 1
            return RUN_STAGE(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(AttackInputs, "read", read)
            patch.setattr(official, "run_stage", run_stage)
            yield

    def on_progress(self, *news: Any) -> None:
        """Note a report of progress."""
        self.progress.append(news)


def evaluated(ranks: Ranks, state_dir: Path | None, **settings: Any) -> dict[str, Any]:
    """An evaluation under all attacks, and what this rank did in it."""
    model, data = set_up(settings.pop("kind", "plain"))
    record = Record()
    chosen = {"attacks": ATTACKS, "threat": THREAT, "batch_size": BATCH, "on_progress": record.on_progress} | settings
    with record.recording():
        found = told(evaluate(model, data, state_dir=state_dir, ranks=ranks, **chosen))
    return found | {"read": record.read, "attacked": record.attacked, "progress": record.progress}


def broken(ranks: Ranks, attacks: tuple[str, ...], rank: int = 1, calls: int = 2) -> dict[str, Any]:
    """An evaluation in which the second batch of AutoAttack on one rank fails."""
    left = [calls if ranks.rank == rank else -1]

    def run_stage(*arguments: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            raise RuntimeError(f"no memory on rank {ranks.rank}\nand more lines")
        return RUN_STAGE(*arguments)

    model, data = set_up()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "run_stage", run_stage)
        return told(evaluate(model, data, attacks=attacks, threat=THREAT, batch_size=BATCH, ranks=ranks))


def error_of_the_only_attack(ranks: Ranks) -> str:
    """What is raised where the only attack fails on one rank, in one line."""
    try:
        broken(ranks, ("autoattack",))
    except Exception as error:
        return str(error).partition("\n")[0]
    return "nothing"


def lose_batches(_module: nn.Module, _inputs: object, logits: Tensor) -> None:
    """A hook that fails on more images than one."""
    if len(logits) > 1:
        raise RuntimeError("no memory for a batch")


def error_before_the_attacks(ranks: Ranks) -> str:
    """What is raised where one rank fails on the clean images, in one line."""
    model, data = set_up()
    if ranks.rank == 1:
        model.register_forward_hook(lose_batches)
    try:
        evaluate(model, data, attacks="clean", batch_size=BATCH, ranks=ranks)
    except Exception as error:
        return str(error)
    return "nothing"


def done_after_a_failure(ranks: Ranks) -> int:
    """How many batches this rank still does after another one has failed at its first."""
    done = []

    def work(number: int, _batch: str) -> None:
        if ranks.rank == 1:
            raise ValueError
        done.append(number)

    with pytest.raises(ValueError), failing_together(ranks):
        over_ranks(ranks, "broken", ["x" for _ in QUICK], work, lambda *_: None)
    return len(done)


def trained(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """A short training, and what this rank read for its validation and evaluation."""
    record = Record()
    settings = tiny_config("method=at-bsl", "train.epochs=1", "eval.batch_size=3", "eval.attacks=['clean', 'pgd3']")
    with record.recording():
        report = train(settings, folder, ranks=ranks)
    return {"report": {role: told(evaluation) for role, evaluation in report.items()}, "read": record.read}


def everything(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """What this rank finds in all evaluations; ``folder`` has the journals."""
    with quick_autoattack():
        found: dict[str, Any] = {
            "all attacks": evaluated(ranks, folder / f"{ranks.size}"),
            "one batch": evaluated(ranks, None, batch_size=WHOLE),
            "flagged": evaluated(ranks, None, kind="flagged", attacks=("clean", "pgd2", "autoattack")),
        }
        if ranks.size == 1:
            return found
        found["resumed"] = evaluated(ranks, folder / f"interrupted for {ranks.size}")
        found["broken"] = broken(ranks, ("clean", "pgd2", "autoattack", "cw2"))
        found["only attack"] = error_of_the_only_attack(ranks)
    found["clean"] = error_before_the_attacks(ranks)
    found["after a failure"] = done_after_a_failure(ranks)
    return found


def alone(folder: Path) -> dict[str, Any]:
    """What one process finds, in one thread like each of several ranks."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return everything(ALONE, folder)
    finally:
        torch.set_num_threads(threads)


def interrupt(journal: Path, left: Path, every: int) -> None:
    """Copy a journal to ``left`` without one batch in ``every``."""
    left.mkdir(parents=True)
    for number, path in enumerate(sorted(journal.iterdir())):
        if number % every:
            (left / path.name).write_bytes(path.read_bytes())


def contents(journal: Path) -> dict[str, Any]:
    """What the files of a journal say, by their names."""
    said = {}
    for path in journal.iterdir():
        with safetensors.safe_open(path, framework="pt") as file:
            said[path.name] = file.metadata(), file.get_tensor("indices").tolist(), file.get_tensor("x_adv").tolist()
    return said
