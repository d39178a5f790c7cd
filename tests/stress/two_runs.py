"""Two runs that are started into one folder: one of them has it, the other gets a sentence.

python -m tests.stress.two_runs                two seeds at once; a killed run resumed twice at once
python -m tests.stress.two_runs --rounds 20    the same twenty times
"""

import argparse
import tempfile
import time
import tomllib
from pathlib import Path

from ltat.training import train
from tests.stress.runs import EPOCHS, same_run, start
from tests.training.tiny import tiny_config

IMPORTING = 5.0  # seconds; runs that load their modules for longer meet less closely


def at_once(folder: Path, *commands: tuple[str, ...]) -> list[int]:
    """The exit codes of runs let go together; what says more than a sentence fails."""
    signal = folder.with_suffix(".go")
    signal.unlink(missing_ok=True)
    processes = [start(folder, signal, *arguments) for arguments in commands]
    time.sleep(IMPORTING)
    signal.touch()
    for process in processes:
        _, said = process.communicate(timeout=300)
        last = said.splitlines()[-1]
        assert process.returncode == 0 or (process.returncode == 2 and last.startswith("Error: ")), said
        assert "Traceback" not in said, said
    return [process.returncode for process in processes]


def two_seeds(references: dict[int, Path], folder: Path) -> None:
    """Started at once: settings, figures and weights are one seed's."""
    codes = at_once(folder, *((f"--seed={seed}",) for seed in references))
    assert sorted(codes) == [0, 2], f"exit codes {codes}"
    seed = tomllib.loads((folder / "config.toml").read_text())["seed"]["train"]
    assert codes[seed] == 0, f"the settings are of seed {seed}, which was refused"
    same_run(references[seed], folder)


def two_resumptions(reference: Path, folder: Path) -> None:
    """Of a run that was killed, as by a queue that starts a job twice."""
    run = start(folder, Path("/"), "--seed=0")
    while not (folder / "state.pt").exists() and run.poll() is None:
        time.sleep(0.005)
    run.kill()
    run.communicate()
    codes = at_once(folder, *(2 * [("--seed=0", "--resume")]))
    assert 0 in codes, f"exit codes {codes}"  # both, where one ended before the other came to the folder
    same_run(reference, folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, metavar="N")
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as work:
        references = {seed: Path(work) / f"seed-{seed}" for seed in (0, 1)}
        for seed, folder in references.items():
            train(tiny_config("method=at-bsl", f"train.epochs={EPOCHS}", f"seed.train={seed}"), folder)
        for number in range(rounds):
            two_seeds(references, Path(work) / f"seeds-{number}")
            two_resumptions(references[0], Path(work) / f"resumed-{number}")
    print(f"{rounds} rounds of two runs in one folder: each folder holds one run")


if __name__ == "__main__":
    main()
