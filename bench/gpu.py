"""Everything that only a GPU machine can tell, by one command. Run in a clone: python -m bench.gpu OUT.

Builds the kernels, then, side by side, runs the CUDA tests and the graph captures and lets compute-sanitizer watch the
kernel tests; what is timed follows strictly alone: the device's ceilings, every bench, a few epochs of training. In
under nine minutes: what there was no time for is named, with the option that runs it in a second call. Every part is a
separate process with its own time limit, so that one failure does not lose the rest; logs, rows, summary.json and
summary.md go to OUT. The exit code is 0 if all parts passed and 1 if not.

It needs nvcc and, in this Python, torch (>= 2.11, a CUDA build), torchvision, the other dependencies of pyproject.toml,
and cmake, ninja, setuptools, pytest and hypothesis; compute-sanitizer comes with CUDA, torchattacks and foolbox are
optional. No network: what is missing is named before anything runs, with the line that fetches its wheels
elsewhere.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path

import click

from bench.report import bench_part, read_all, table, targets_part

ROOT = Path(__file__).resolve().parents[1]
HEAVY = ("pyautoattack",)  # asks for torch, which is here
TOOLS = ("cmake", "ninja", "setuptools", "pytest", "hypothesis")
MINUTES = 8.8
SHORTEST = 5.0  # seconds; with less time left a part is not begun
POLL = 0.1  # seconds between two looks at what is running
MEASURED_TFLOPS = 788  # bf16, random matrices of 8192 x 8192, on an H200
GFLOP_FORWARD = 1.111  # of one 32 x 32 image through ResNet-18
# An image costs two units for each of ten attack steps (forward, and backward to the image), three for a forward with a
# full backward, one for a forward: the student sees x + d and x - d, and its teacher too.
UNITS = {"plain AT-BSL step": 23, "teacher": 23, "student": 28}
OUR_KERNELS = ("--kernel-name", "kns=ltat")  # by a part of their mangled names, which the namespace is in
SLOW_TESTS = ("any_shape", "any_form", "row_is_the_same", "contract")
PASSED, SKIPPED = r"\d+ passed", "needs a CUDA device"


@dataclass(frozen=True)
class Part:
    """A program and the seconds it may take.

    Skipped tests fail nothing, so ``proof`` must be found in what it prints, and ``disproof`` must not.
    """

    name: str
    command: Sequence[str]
    limit: float
    proof: str = ""
    disproof: str = r"(?!)"  # found nowhere


@dataclass(frozen=True)
class Outcome:
    """How a part ended: passed, failed, timed out, or not run."""

    name: str
    state: str
    seconds: float
    limit: float
    last_line: str = ""


Stage = tuple[Part, ...]
"""Parts that run side by side."""


def python(*arguments: str) -> list[str]:
    """A program of this interpreter."""
    return [sys.executable, *arguments]


def bench(name: str, limit: float, rounds: int, *options: str, part: str = "", modes: str = "") -> Part:
    """A bench on the GPU, shortened: without torch.compile, or with those of its modes that are worth their time."""
    command = python("-m", f"bench.{name}", "--device", "cuda", "--rounds", str(rounds), *options)
    return Part(part or name, ["env", f"LTAT_BENCH_MODES={modes}", *command], limit)


def train_step(images: str, limit: float, *options: str, part: str, modes: str = "") -> Part:
    """The training step at a batch of ``images``."""
    return bench("train_step", limit, 7, "--batch", images, *options, part=part, modes=modes)


def tests(name: str, limit: float, folder: str, *chosen: str, under: Sequence[str] = ()) -> Part:
    """The tests of ``folder`` that pytest's options ``chosen`` fit, but for those of this machinery."""
    ignored = ("--ignore=tests/bench", "--ignore=tests/packaging", "-p", "no:cacheprovider")
    ignored += ("--continue-on-collection-errors",)  # a missing package costs the tests that need it, and no other
    return Part(name, [*under, *python("-m", "pytest", folder, "-q", *ignored, *chosen)], limit, PASSED, SKIPPED)


def sanitizer(tool: str, *watched: str) -> Part:
    """The kernel tests under a tool of compute-sanitizer; torch's caching allocator would hide what they look for.

    Without the randomised ones, which launch thousands of kernels, and without what torch asks of the driver in vain.
    """
    under = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", "compute-sanitizer", "--tool", tool, *watched)
    under += ("--report-api-errors", "no", "--error-exitcode", "9")
    chosen = " and not ".join(("cuda", "compile", "capture", *SLOW_TESTS))
    return tests(tool, 90, "tests/ops", "-k", chosen, under=under)


def training(out: Path, data_dir: Path | None, limit: float, *options: str, part: str = "training") -> Part:
    """Both stages of the main method, attack and update as CUDA graphs."""
    data = ["--data-dir", str(data_dir)] if data_dir else []
    return Part(part, python("-m", "bench.short_training", str(out / part), *data, *options), limit)


def all_stages(out: Path, data_dir: Path | None) -> list[Stage]:
    """The parts in their order, what matters most first. What is timed is alone, the rest runs side by side.

    Nothing compiles by torch.compile, which takes minutes, before every bench has written its other rows.
    """
    checks = (
        tests("tests", 100, "tests", "-k", "(cuda or gpu) and not capture"),
        tests("capture", 120, "tests", "-k", "capture", "-m", "skipif"),  # those that a CPU alone would skip
        sanitizer("memcheck", *OUR_KERNELS),
        sanitizer("racecheck", *OUR_KERNELS),
        sanitizer("initcheck"),  # watches all kernels: what one that it does not watch has written would be an error
    )
    timed = (
        Part("ceilings", python("-m", "bench.ceilings", str(out / "ceilings.json")), 30),
        bench("pgd_step", 50, 10),
        bench("end_to_end", 120, 2),
        train_step("32", 50, "--no-memory", part="train_step_32"),
        train_step("128", 90, part="train_step_128"),
        training(out, data_dir, 90),
        bench("balanced_kd", 40, 10),
        bench("attack", 40, 7),
        bench("gather_augment", 40, 10),
        bench("relu_grad_add", 20, 10),
        bench("affine_relu", 20, 10),
        bench("loader", 40, 2),
        bench("pgd_step", 50, 10, part="pgd_step_compiled", modes="default"),
        bench("balanced_kd", 60, 10, part="balanced_kd_compiled", modes="default"),
        bench("attack", 60, 7, part="attack_compiled", modes="reduce-overhead"),
        train_step("128", 120, "--no-memory", part="train_step_compiled", modes="reduce-overhead"),
        training(out, data_dir, 60, "--epochs", "2", "--set", "train.graph=false", part="training_eager"),
    )
    return [(Part("build", python("setup.py", "build_ext", "--inplace"), 150),), checks, *((part,) for part in timed)]


def missing_packages() -> list[str]:
    """The packages of pyproject.toml, and those that build and test, which are not installed."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = [re.split(r"[^\w-]", line, maxsplit=1)[0] for line in needed]
    return [name for name in (*names, *TOOLS) if not _installed(name)]


def how_to_bring(missing: Sequence[str]) -> str:
    """The lines that fetch packages where there is a network, as a folder that PYTHONPATH names here."""
    version = ".".join(map(str, sys.version_info[:2]))
    download = f"pip download -d wheels --only-binary :all: --python-version {version}"
    heavy = [name for name in missing if name in HEAVY]
    light = [name for name in missing if name not in HEAVY]
    lines = [f"missing here: {' '.join(missing)}; what does not need them runs; elsewhere:"]
    lines += [f"  {download} {' '.join(light)}"] if light else []
    lines += [f"  {download} --no-deps {' '.join(heavy)}"] if heavy else []
    lines += ["  for w in wheels/*.whl; do python -m zipfile -e $w site; done; rm -rf site/pyautoattack/examples"]
    return "\n".join([*lines, 'then here: PYTHONPATH="$PWD/site" python -m bench.gpu OUT'])


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@dataclass(frozen=True)
class Running:
    """A part that has been started, and its log."""

    part: Part
    log: Path
    limit: float
    process: subprocess.Popen[bytes]
    started: float

    @classmethod
    def start(cls, part: Part, log: Path, limit: float, env: Mapping[str, str]) -> "Running":
        """Start a part, writing into ``log``; OSError where there is no such program."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as output:
            process = subprocess.Popen(
                part.command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        return cls(part, log, limit, process, time.monotonic())

    @property
    def over(self) -> bool:
        """Whether it has ended or is past its limit."""
        return self.process.poll() is not None or time.monotonic() - self.started > self.limit

    def end(self) -> Outcome:
        """How it ended; every process that it started ends with it."""
        code, seconds = self.process.poll(), time.monotonic() - self.started
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # also what a part that ended has left behind
        self.process.wait()
        text = self.log.read_text(errors="replace")
        shown = re.search(self.part.proof, text) and not re.search(self.part.disproof, text)
        state = "timed out" if code is None else "passed" if code == 0 and shown else "failed"
        lines = text.strip().splitlines()
        return Outcome(self.part.name, state, seconds, self.limit, lines[-1] if lines else "")


def run_stage(stage: Stage, logs: Path, seconds: float, env: Mapping[str, str]) -> Iterator[Outcome]:
    """Run the parts of a stage side by side, each within its limit and ``seconds``; outcomes as they end."""
    running: list[Running] = []
    try:
        for part in stage:
            limit = min(part.limit, seconds)
            if limit < min(SHORTEST, part.limit):
                yield Outcome(part.name, "not run", 0.0, part.limit, f"no time was left; --only {part.name} runs it")
                continue
            try:
                running.append(Running.start(part, logs / f"{part.name}.log", limit, env))
            except OSError as error:
                yield Outcome(part.name, "failed", 0.0, limit, str(error))
        while running:
            for ended in [one for one in running if one.over]:
                running.remove(ended)
                yield ended.end()
            time.sleep(POLL)
    finally:
        for left in running:
            left.end()


def run_stages(stages: Sequence[Stage], out: Path, seconds: float, env: Mapping[str, str]) -> list[Outcome]:
    """Run all stages within ``seconds``; after each part the summary is written anew, so that none is lost."""
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for stage in stages:
        for done in run_stage(stage, out / "logs", end - time.monotonic(), env):
            outcomes.append(done)
            print(f"{done.name:20}{done.state:10}{done.seconds:6.0f} s  {done.last_line[:90]}", flush=True)
            write_summary(out, outcomes)
    return outcomes


def write_summary(out: Path, outcomes: Sequence[Outcome]) -> None:
    """summary.json and summary.md of what there is so far."""
    ceilings = _json(out / "ceilings.json")
    rates = throughput(out, float(ceilings.get("bf16_tflops", MEASURED_TFLOPS)))
    summary = {"parts": [asdict(outcome) for outcome in outcomes], "ceilings": ceilings, "throughput": rates}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    measured = read_all(out / "results")
    rows = [
        [o.name, o.state, f"{o.seconds:.0f} s", f"{o.limit:.0f} s", o.last_line.replace("|", "/")] for o in outcomes
    ]
    page = ["# GPU run\n", table(("part", "state", "took", "limit", "last line"), rows)]
    page += [f"Ceilings: {json.dumps(ceilings)}\n"] if ceilings else []
    page += [throughput_table(rates)] if rates else []
    page += [targets_part("Targets", measured, on_gpu=True)]
    page += [bench_part(name, cases) for name, cases in measured.items()]
    (out / "summary.md").write_text("\n".join(page))


def throughput(out: Path, ceiling: float) -> list[dict[str, object]]:
    """Images/s of the training epochs and of the measured steps, and the share of two ceilings that their FLOPs are.

    The first epoch of a stage has captured and tuned, so it is left out where there are more.
    """
    rates: dict[str, tuple[float, int]] = {}
    file = out / "training" / "metrics.jsonl"
    epochs = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    for stage in dict.fromkeys(row["stage"] for row in epochs):
        speeds = [row["images_per_s"] for row in epochs if row["stage"] == stage]
        rates[f"{stage}, epochs as trained"] = max(speeds[1:] or speeds), UNITS[stage]
    for case in read_all(out / "results").get("train_step", []):
        images = re.match(r"resnet18 (\d+)x\S+ 10 steps", case.first.case)
        for row in case.rows.values() if images else ():
            rates[f"{row.candidate}, {row.case}"] = int(images[1]) / row.median * 1e6, UNITS["plain AT-BSL step"]
    return [
        {
            "what": what,
            "images_per_s": round(speed),
            "tflops": round(tflops := speed * units * GFLOP_FORWARD / 1e3, 1),
            "mfu_percent": round(100 * tflops / ceiling, 1),
            "mfu_percent_of_788": round(100 * tflops / MEASURED_TFLOPS, 1),
        }
        for what, (speed, units) in rates.items()
    ]


def throughput_table(rates: Sequence[Mapping[str, object]]) -> str:
    """The same as a table; MFU against the product just measured, and against 788 TFLOP/s."""
    return table(
        [name.replace("_", " ") for name in rates[0]], [[str(cell) for cell in rate.values()] for rate in rates]
    )


def _json(file: Path) -> dict[str, object]:
    return json.loads(file.read_text()) if file.exists() else {}


def environment(out: Path, commit: str | None) -> dict[str, str]:
    """What every part runs under: the kernels must be there, and the rows go to OUT."""
    given = {"LTAT_NATIVE": "1", "LTAT_CUDA": "ON", "CUDAARCHS": os.environ.get("CUDAARCHS", "native")}
    given |= {"LTAT_BENCH_RESULTS": str(out / "results"), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "4"}
    return {**os.environ, **given, **({"LTAT_BENCH_COMMIT": commit} if commit else {})}


@click.command()
@click.argument("out", type=click.Path(path_type=Path, file_okay=False))
@click.option("--data-dir", type=click.Path(path_type=Path, exists=True), help="CIFAR-10-LT as train.npz and test.npz.")
@click.option("--minutes", type=float, help=f"All parts together, {MINUTES} by default; beside --only also each part.")
@click.option("--only", multiple=True, metavar="PART", help="Only this part; repeatable.")
@click.option("--commit", help="The commit that the rows are to name, where this is no clone.")
def main(out: Path, data_dir: Path | None, minutes: float | None, only: tuple[str, ...], commit: str | None) -> None:
    """Build, test, measure and train on this machine's GPU, into the folder OUT."""
    out, data_dir = out.absolute(), data_dir and data_dir.absolute()
    stages = all_stages(out, data_dir)
    names = [part.name for stage in stages for part in stage]
    unknown = set(only) - set(names)
    if unknown:
        raise click.UsageError(f"no part is called {unknown.pop()}; choose from {', '.join(names)}")
    if out.exists() and any(out.iterdir()):
        raise click.UsageError(f"{out} is not empty; name a new folder")
    missing = missing_packages()
    if missing:
        print(how_to_bring(missing), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    chosen = [tuple(part for part in stage if part.name in (only or names)) for stage in stages]
    if only and minutes is not None:
        chosen = [tuple(replace(part, limit=60 * minutes) for part in stage) for stage in chosen]
    outcomes = run_stages(chosen, out, 60 * (MINUTES if minutes is None else minutes), environment(out, commit))
    sys.exit(0 if all(outcome.state == "passed" for outcome in outcomes) else 1)


if __name__ == "__main__":
    main()
