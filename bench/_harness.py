"""Interleaved timing of competing implementations, one CSV row per measurement."""

import csv
import datetime
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
WARM_UP = 10
COMMON = ("date", "hardware", "torch", "threads", "commit", "case", "candidate")


def _seconds(run: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Seconds of one call, averaged over ``repeats`` calls in a row."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - begin) / repeats


def compare(
    candidates: dict[str, Callable[[], object]],
    device: torch.device,
    rounds: int = 30,
    target: float = 5e-3,
    warm_up: int = WARM_UP,
) -> dict[str, tuple[float, float, float]]:
    """Median, 20th and 80th percentile of the seconds per call.

    The candidates take turns in every round, so that a machine that slows down slows all of them; a turn lasts
    about ``target`` seconds. Compilation and warm-up are not counted.
    """
    repeats = {}
    for name, run in candidates.items():
        for _ in range(warm_up):
            run()
        repeats[name] = max(1, int(target / _seconds(run, 3 if target else 1, device)))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(_seconds(run, repeats[name], device))
    return {name: (statistics.median(t), *_spread(t)) for name, t in times.items()}


def _spread(times: list[float]) -> tuple[float, float]:
    deciles = statistics.quantiles(times, n=10)
    return deciles[1], deciles[7]


def hardware(device: torch.device) -> str:
    """Name of the processor or GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    run = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "csrc", "ltat"], check=False).returncode
    return run.stdout.strip() + ("+" if dirty else "")


def append(name: str, case: str, device: torch.device, results: dict[str, tuple[float, float, float]]) -> None:
    """Print the medians and append one row per candidate to ``bench/results/<name>.csv``."""
    rows = [
        [*common_cells(device), case, candidate, *(f"{1e6 * s:.1f}" for s in seconds)]
        for candidate, seconds in results.items()
    ]
    write_rows(name, ("median_us", "p20_us", "p80_us"), rows)
    medians = "  ".join(f"{candidate} {1e6 * s[0]:.0f} us" for candidate, s in results.items())
    print(f"{case:40s} {medians}", flush=True)


def common_cells(device: torch.device) -> list[object]:
    """Date, hardware, torch, threads and commit: what every row begins with."""
    today = datetime.date.today().isoformat()
    return [today, hardware(device), torch.__version__, torch.get_num_threads(), _commit()]


def write_rows(name: str, columns: tuple[str, ...], rows: list[list[object]]) -> None:
    """Append rows to ``bench/results/<name>.csv``; a new file begins with the names of the columns."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow([*COMMON, *columns])
        writer.writerows(rows)
