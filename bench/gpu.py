"""Everything that only a GPU machine can tell, by one command. Run in a copy of the sources: python -m bench.gpu OUT.

Builds the kernels, then, side by side, runs the CUDA tests and the graph captures and lets compute-sanitizer watch the
kernel tests; what is timed follows strictly alone: the device's ceilings, the main method's whole training, every
bench. One call takes under nine minutes; the next with the same OUT goes on with what was not run or timed out, and a
training that was cut off with its next epoch. Every part is a separate process with its own time limit, so that one
failure does not lose the rest; logs, rows, summary.json and summary.md go to OUT, and all of it but large files to one
archive, which is written anew after every part. The exit code is 0 if all parts passed so far and 1 if not.

It needs nvcc and, in this Python, torch (>= 2.11, a CUDA build), torchvision, the other dependencies of pyproject.toml,
and cmake, ninja, setuptools, pybind11, pytest and hypothesis; compute-sanitizer comes with CUDA. No network: what is
missing is named before anything runs, and costs what needs it alone; `python -m bench.carry` puts it into a folder
elsewhere, with the images.
"""

import os
import re
import signal
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import click

from bench import _gpu_results
from bench._parts import PACKED, SITE, all_stages
from bench._running import FAILED, PASSED, ROOT, Outcome, Stage, left_to_run, run_stages

TOOLS = ("cmake", "ninja", "setuptools", "pybind11", "pytest", "hypothesis")
MINUTES = 8.8


def missing_packages() -> list[str]:
    """The packages of pyproject.toml, and those that build and test, which are not installed."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[^\w-]", line, maxsplit=1)[0] for line in needed]
    return [name for name in (*names, *TOOLS) if not _installed(name)]


def how_to_bring(missing: Sequence[str]) -> str:
    """The command that puts packages into a folder where there is a network."""
    version = ".".join(map(str, sys.version_info[:2]))
    named = " ".join(f"--package {name}" for name in missing)
    return (
        f"missing here: {' '.join(missing)}; what does not need them runs; elsewhere:\n"
        f"  python -m bench.carry carried --python {version} {named}\n"
        "then here: python -m bench.gpu OUT --carried carried"
    )


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def environment(out: Path, commit: str | None) -> dict[str, str]:
    """What every part runs under: the kernels must be there, the rows go to OUT."""
    given = {"LTAT_NATIVE": "1", "LTAT_CUDA": "ON", "CUDAARCHS": os.environ.get("CUDAARCHS", "native")}
    given |= {"LTAT_BENCH_RESULTS": str(out / "results"), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
    return {**os.environ, **given, **({"LTAT_BENCH_COMMIT": commit} if commit else {})}


def take(carried: Path) -> Path | None:
    """Let this program and all that it starts find the packages that were brought; the folder, if it holds images."""
    site = str(carried / SITE)
    sys.path.insert(0, site)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (site, os.environ.get("PYTHONPATH"))))
    return carried if (carried / PACKED["train"]).exists() else None


def chosen_stages(
    stages: Sequence[Stage], before: Mapping[str, Outcome], only: Sequence[str], minutes: float | None
) -> list[Stage]:
    """What this call runs; the minutes that are given beside single parts are their limit too.

    Raises:
        UsageError: there is no such part.
    """
    names = [part.name for stage in stages for part in stage]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise click.UsageError(f"no part is called {unknown[0]}; choose from {', '.join(names)}")
    chosen = left_to_run(stages, before, only)
    if only and minutes is not None:
        return [tuple(replace(part, limit=60 * minutes) for part in stage) for stage in chosen]
    return chosen


def told_of(before: Mapping[str, Outcome]) -> str:
    """What former calls have settled, as a line."""
    names = {state: " ".join(o.name for o in before.values() if o.state == state) for state in (PASSED, FAILED)}
    failed = f"; failed, and run again by --only: {names[FAILED]}" if names[FAILED] else ""
    return f"passed in former calls: {names[PASSED] or 'none'}{failed}"


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--carried", type=click.Path(path_type=Path, exists=True), help="The folder of `python -m bench.carry`.")
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True), help="CIFAR-10-LT as train.npz and test.npz.")
@click.option("--minutes", type=float, help=f"All parts together, {MINUTES} by default; beside --only also each part.")
@click.option("--only", multiple=True, metavar="PART", help="Only this part, whatever became of it; repeatable.")
@click.option("--archive", type=click.Path(path_type=Path, dir_okay=False), help="In place of OUT.tar.gz.")
@click.option("--commit", help="The commit that the rows are to name, where this is no clone.")
def main(
    out: Path,
    carried: Path | None,
    data_dir: Path | None,
    minutes: float | None,
    only: tuple[str, ...],
    archive: Path | None,
    commit: str | None,
) -> None:
    """Build, test, measure and train on this machine's GPU, into the folder OUT, or go on with it."""
    out = out.absolute()
    archive = archive or out.with_name(f"{out.name}.tar.gz")
    brought = take(carried.absolute()) if carried else None
    data_dir = data_dir.absolute() if data_dir else brought
    outcomes = _gpu_results.read_outcomes(out)
    stages = all_stages(out, data_dir)
    chosen = chosen_stages(stages, outcomes, only, minutes)
    missing = missing_packages()
    if missing:
        print(how_to_bring(missing), flush=True)
    if outcomes:
        print(told_of(outcomes), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # what is running ends with this

    def record(done: Outcome) -> None:
        outcomes[done.name] = done
        print(f"{done.name:20}{done.state:10}{done.seconds:6.0f} s  {done.last_line[:90]}", flush=True)
        _gpu_results.write_summary(out, list(outcomes.values()))
        _gpu_results.write_archive(out, archive)

    seconds = 60 * (MINUTES if minutes is None else minutes)
    run_stages(chosen, out / "logs", seconds, environment(out, commit), record)
    sys.exit(0 if all(outcome.state == PASSED for outcome in outcomes.values()) else 1)


if __name__ == "__main__":
    main()
