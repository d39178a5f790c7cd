"""Interleaved timing of competing implementations, one CSV row per measurement."""

import csv
import ctypes
import datetime
import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click
import torch

from ltat.engine import graphs

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
RESULTS_VARIABLE = "LTAT_BENCH_RESULTS"  # another folder for the rows
MODES_VARIABLE = "LTAT_BENCH_MODES"  # modes of torch.compile to try on a GPU, with commas; empty: do not compile
COMMIT_VARIABLE = "LTAT_BENCH_COMMIT"  # the commit, where the sources are no clone
COLUMNS = (
    "date",
    "hardware",
    "torch",
    "threads",
    "commit",
    "case",
    "candidate",
    "unit",
    "median",
    "p20",
    "p80",
    "bytes",
)
WARM_UP = 10
TRIALS = graphs.WARM_UP + 2  # a captured update warms up, is recorded, and is replayed
MODES = ("default", "reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")
CPU_MODES = ("default",)  # the others differ in CUDA graphs and in tuned matrix products, which no bench is made of

MOST_LAUNCHED = 10  # calls that wait at a time: a queue holds about 1,000 launches, and a loss is dozens
HOLDS = (2**23, 2**25, 2**27)  # cycles of a waiting kernel: 4, 17 and 70 ms at 2 GHz

Run = Callable[[], object]
Timed = Callable[[Run, int], float]
"""(run, repeats) → seconds of one call."""


class Spread(NamedTuple):
    """Median, 20th and 80th percentile of one candidate's measurements."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        deciles = statistics.quantiles(values, n=10, method="inclusive") if len(values) > 1 else values * 9
        return cls(statistics.median(values), deciles[1], deciles[7])


class NetworkCase(NamedTuple):
    """Images, attack steps, whether everyone takes part or only plain PyTorch and ltat's fastest, calls to warm up."""

    images: int
    steps: int
    everyone: bool
    warm_up: int


def network_cases(device: torch.device, batch: int | None) -> list[NetworkCase]:
    """What is measured of a network: the batches of student and teacher on a GPU.

    On a CPU, where a step on 64 images costs seconds, everyone takes a short part on a quarter of the batch, and the
    whole is measured of two alone, without warm-up calls.
    """
    if device.type == "cuda":
        return [NetworkCase(images, 10, True, 5) for images in ((batch,) if batch else (128, 32))]
    batch = batch or 64
    return [NetworkCase(max(2, batch // 4), 2, True, 1), NetworkCase(batch, 10, False, 0)]


def bench_options(
    threads: int | None = None, rounds: int = 30, keep_memory: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options of every bench; ``main`` is called as ``main(device, rounds)`` with threads and seed set.

    Args:
        threads: CPU threads where none are asked for; one per core if None.
        rounds: rounds where none are asked for.
        keep_memory: see :func:`keep_freed_memory`.
    """
    options = (
        click.option("--device", default="cpu", show_default=True),
        click.option("--threads", type=int, default=threads or os.cpu_count(), show_default=True, help="CPU threads."),
        click.option("--rounds", type=click.IntRange(1), default=rounds, show_default=True),
        click.option("--results", type=click.Path(file_okay=False), help="Folder for the rows."),
    )

    def decorate(main: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(main)
        def begun(device: str, threads: int, rounds: int, results: str | None, **own: Any) -> None:
            if keep_memory:
                keep_freed_memory()
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            torch.backends.cudnn.benchmark = True
            if results:
                os.environ[RESULTS_VARIABLE] = results
            main(torch.device(device), rounds, **own)

        return functools.reduce(lambda command, option: option(command), reversed(options), begun)

    return decorate


def keep_freed_memory() -> None:
    """Let glibc keep what a candidate frees, so that its temporaries do not go to the system and come back.

    On some machines that costs the eager candidates several times their arithmetic; it is not part of the operation.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        no_mmap, trim_threshold, top_pad = -4, -1, -2  # M_MMAP_MAX, M_TRIM_THRESHOLD, M_TOP_PAD of malloc.h
        for parameter, value in ((no_mmap, 0), (trim_threshold, 2**31 - 1), (top_pad, 2**26)):
            mallopt(parameter, value)


def release_freed_memory() -> None:
    """Give the system what glibc keeps of freed memory: what reuses it would seem to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def compare(
    candidates: Mapping[str, Run],
    device: torch.device,
    rounds: int = 30,
    target: float = 5e-3,
    warm_up: int = WARM_UP,
    timed: Timed | None = None,
) -> dict[str, Spread]:
    """The seconds per call of every candidate.

    The candidates take turns in every round, so that a machine that slows down slows all of them; a turn lasts
    about ``target`` seconds, and is one call where that is 0. Compilation and ``warm_up`` calls are not counted.
    ``timed`` is the clock; None: events on a GPU, and the wall's on a CPU.
    """
    timed = timed or (event_seconds if device.type == "cuda" else wall_seconds)
    repeats = dict.fromkeys(candidates, 1)
    for name, run in candidates.items():
        for _ in range(warm_up):
            run()
        if target:
            repeats[name] = max(1, int(target / timed(run, 3)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(timed(run, repeats[name]))
    return {name: Spread.of(t) for name, t in times.items()}


def compare_operations(candidates: Mapping[str, Run], device: torch.device, rounds: int = 30) -> dict[str, Spread]:
    """:func:`compare` for single operations, on a GPU by the device's time alone.

    One takes microseconds there, less than its launch takes the host: events would time Python.
    """
    return compare(candidates, device, rounds, timed=device_seconds if device.type == "cuda" else None)


def wall_seconds(run: Run, repeats: int) -> float:
    """Seconds of one call, averaged over ``repeats`` calls in a row."""
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def event_seconds(run: Run, repeats: int) -> float:
    """The same on a GPU, from the first launch to the end of the last kernel."""
    torch.cuda.synchronize()
    return _between_events(run, repeats)[0]


def device_seconds(run: Run, repeats: int) -> float:
    """The same of the device alone: a kernel that waits holds it until all is launched.

    What reads a value back cannot be held; its time is that of :func:`event_seconds`.
    """
    repeats = min(repeats, MOST_LAUNCHED)
    for cycles in HOLDS:
        torch.cuda.synchronize()
        torch.cuda._sleep(cycles)
        seconds, held = _between_events(run, repeats)
        if held:
            break
    return seconds


def _between_events(run: Run, repeats: int) -> tuple[float, bool]:
    """Seconds of one call, and whether the device began only when all calls had been launched."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        run()
    end.record()
    held = not start.query()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / repeats, held


def best_compiled(
    build: Callable[[Callable[..., Any]], Run],
    device: torch.device,
    modes: tuple[str, ...] = MODES,
    comparison: Callable[..., dict[str, Spread]] = compare,
) -> Run:
    """The result of ``build(compile)`` with the mode of ``torch.compile`` that is the fastest by ``comparison``.

    Shapes are compiled as constants, and the compiled code of earlier cases is discarded, so that neither slows this.
    """
    torch.compiler.reset()
    chosen = modes_to_try(device, modes)
    if not chosen:
        raise RuntimeError(f"{MODES_VARIABLE} names no mode")
    runs = {mode: build(functools.partial(torch.compile, mode=mode, dynamic=False)) for mode in chosen}
    if len(runs) == 1:
        return runs.popitem()[1]
    medians = comparison(runs, device, rounds=5)
    best = min(medians, key=lambda mode: medians[mode].median)
    print(f"torch.compile: the quickest mode is {best}", flush=True)
    return runs[best]


def modes_to_try(device: torch.device, modes: tuple[str, ...] = MODES) -> tuple[str, ...]:
    """``modes`` on a GPU, or those that the environment names."""
    if device.type != "cuda":
        return CPU_MODES
    named = os.environ.get(MODES_VARIABLE)
    return modes if named is None else tuple(filter(None, named.split(",")))


def tried(name: str, build: Callable[[], Run], trials: int = TRIALS) -> dict[str, Run]:
    """The candidate ``name``, or nothing and a line where it cannot be made or run here.

    It is called ``trials`` times: what is captured must have been recorded and replayed before it is compared. For what
    we compare with, and for captures: a compiler or a capture that fails must not cost the other rows, while a failure
    of ours that is neither is to end the bench.
    """
    try:
        run = build()
        for _ in range(trials):
            run()
    except Exception as error:
        print(f"{name} is left out: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
        return {}
    return {name: run}


def graphed(run: Run) -> Run:
    """The replay of a CUDA graph of ``run``."""
    return graphs.capture_on_cuda(run, torch.device("cuda", torch.cuda.current_device()))[0]


def append(
    name: str, case: str, device: torch.device, seconds: Mapping[str, Spread], traffic: Mapping[str, int] | None = None
) -> None:
    """Print the medians of timed candidates and append their rows, in microseconds, with the bytes a call moves."""
    in_us = {candidate: Spread(*(1e6 * value for value in spread)) for candidate, spread in seconds.items()}
    write_rows(name, case, device, "us", in_us, traffic)


def write_rows(
    name: str,
    case: str,
    device: torch.device,
    unit: str,
    measured: Mapping[str, Spread],
    traffic: Mapping[str, int] | None = None,
) -> None:
    """Append one row per candidate to the bench's CSV; a new file begins with the names of the columns."""
    path = results_folder() / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    moved = traffic or {}
    common = [
        datetime.date.today().isoformat(),
        hardware(device),
        torch.__version__,
        torch.get_num_threads(),
        _commit(),
    ]
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if new:
            writer.writerow(COLUMNS)
        for candidate, spread in measured.items():
            numbers = (_digits(value) for value in spread)
            writer.writerow([*common, case, candidate, unit, *numbers, moved.get(candidate, "")])
    print(f"{case:44s}", *(f"{c} {_shown(spread.median)} {unit} " for c, spread in measured.items()), flush=True)


def _digits(value: float) -> str:
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def results_folder() -> Path:
    """The folder of the rows."""
    return Path(os.environ.get(RESULTS_VARIABLE) or RESULTS)


def hardware(device: torch.device) -> str:
    """Name of the processor, with the instructions that torch uses on it, or of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return f"{line.split(':', 1)[1].strip()} {torch.backends.cpu.get_cpu_capability()}"
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit measured, with a plus where csrc or ltat differ from it."""
    if os.environ.get(COMMIT_VARIABLE):
        return os.environ[COMMIT_VARIABLE]
    try:
        git = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=False)
        head = git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip()
        dirty = git(["git", "diff", "--quiet", "HEAD", "--", "csrc", "ltat"]).returncode
    except FileNotFoundError:
        return "unknown"
    return head + ("+" if dirty else "") if head else "unknown"
