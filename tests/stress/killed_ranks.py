"""A run on two ranks, of which one or the other is killed at random moments, ends with the bits of an undisturbed one.

python -m tests.stress.killed_ranks               three kills
python -m tests.stress.killed_ranks --kills 20    twenty
"""

import argparse
import itertools
import os
import random
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.ranks.launching import launch, torchrun
from tests.ranks.test_whole_runs import EVERY_STEP, STAGES, options
from tests.stress.runs import same_run
from tests.warm import Program


def ranks_of(launched: int) -> list[int]:
    """The processes that a torchrun has started and that still run."""
    try:
        return [int(child) for child in Path(f"/proc/{launched}/task/{launched}/children").read_text().split()]
    except FileNotFoundError:  # it has ended
        return []


def stage_of(folder: Path) -> str:
    """How far a run is, in words."""
    for name, words in (
        ("evaluation", "in evaluation"),
        ("state.pt", "of the student"),
        ("config.toml", "of the teacher"),
    ):
        if (folder / name).exists():
            return words
    return "before the folder"


def killed_again_and_again(folder: Path, kills: int, longest: float) -> Counter[str]:
    """The moments of the kills of one launch, which ends by itself."""
    command = launch(2, "ltat", "train", *options(*STAGES, EVERY_STEP), "--out", str(folder), restarts=kills)
    moments: Counter[str] = Counter()
    known: set[int] = set()
    with Program(*command) as program:
        while sum(moments.values()) < kills and program.poll() is None:
            fresh = [rank for rank in ranks_of(program.pid) if rank not in known]
            if len(fresh) < 2:
                time.sleep(0.01)
                continue
            known.update(fresh)
            time.sleep(random.uniform(0, 0.6 * longest))
            victim = random.randrange(2)
            if fresh[victim] in ranks_of(program.pid):
                moments[f"rank {victim} {stage_of(folder)}"] += 1
                os.kill(fresh[victim], signal.SIGKILL)
        _, said = program.communicate()
    assert program.returncode == 0, said
    assert "Traceback" not in said, said
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3, metavar="N")
    kills = parser.parse_args().kills
    with tempfile.TemporaryDirectory() as work:
        reference = Path(work) / "reference"
        torchrun(2, "ltat", "methods")  # starts the process whose forks the ranks are
        begun = time.monotonic()
        done = torchrun(2, "ltat", "train", *options(*STAGES, EVERY_STEP), "--out", str(reference))
        assert done.returncode == 0, done.stderr
        longest, moments = time.monotonic() - begun, Counter[str]()
        for number in itertools.count():  # a launch may end before all its kills
            if sum(moments.values()) >= kills:
                break
            folder = Path(work) / f"killed-{number}"
            moments += killed_again_and_again(folder, kills - sum(moments.values()), longest)
            same_run(reference, folder)
    print(f"{sum(moments.values())} kills ({', '.join(f'{n} {what}' for what, n in moments.items())}): the same bits")


if __name__ == "__main__":
    main()
