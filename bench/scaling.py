"""How time and memory grow with images, classes, pixels and batch. Run: python -m bench.scaling.

A row per size, and one with the exponent p of cost = k · size^p, by least squares in log-log over the larger half of
the sizes, so that constant overhead does not flatter it. A time is the least of several calls, with the largest as its
80th percentile, and on a CPU the processor's time: what else runs on the machine can only add to it. Memory is what the
first call adds at most to a fresh process (CPU), or what torch allocates for it (GPU). An exponent above 1.1 is a
fault, unless a part of the call that the published bits fix, numpy's permutation, grows as fast; with `--strict` the
exit code is then 1. Attack and step are on `small` (CPU) or ResNet-18 (GPU), two attack steps, 4 images at each number
of pixels and 32 pixels at each batch. Pixels are those of a side, with exponents over their square. Sizes that would
take longer than `--seconds` a call are left out, and named.
"""

import multiprocessing
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection

import click
import torch

from bench._curves import Curve, curves
from bench._fits import exponent, is_fault, memory_exponent
from bench._harness import Run, Spread, bench_options, write_rows
from bench.train_step import process_peak

ENOUGH = 5.0  # seconds of repeated calls
BENCH = "scaling"


@dataclass(frozen=True)
class Point:
    """The seconds of several calls, and the bytes that one adds at most."""

    seconds: list[float]
    peak: float

    @property
    def spread(self) -> Spread:
        """The least, the least and the largest time in microseconds."""
        return Spread(1e6 * min(self.seconds), 1e6 * min(self.seconds), 1e6 * max(self.seconds))


@dataclass
class Found:
    """A curve's points and exponents."""

    curve: Curve
    points: dict[int, Point] = field(default_factory=dict)
    left_out: list[int] = field(default_factory=list)

    @property
    def time_exponent(self) -> float | None:
        """Of the least times."""
        return exponent({self.curve.grows(size): min(point.seconds) for size, point in self.points.items()})

    @property
    def memory_exponent(self) -> float | None:
        """Of the peaks."""
        return memory_exponent({self.curve.grows(size): p.peak / 2**20 for size, p in self.points.items()})

    def faults(self, inevitable: float | None) -> list[str]:
        """A line for each exponent that is too large."""
        limits = {"time": (self.time_exponent, self.curve.time_limit, inevitable)}
        limits["memory"] = (self.memory_exponent, self.curve.memory_limit, None)
        return [
            f"FAULT: {what} of {self.curve.case} grows with exponent {found:.2f}, above {limit}"
            for what, (found, limit, part) in limits.items()
            if is_fault(found, limit, part)
        ]


def timed(run: Run, rounds: int, device: torch.device) -> list[float]:
    """The seconds of up to ``rounds`` calls, fewer where they are long."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    seconds: list[float] = []
    while len(seconds) < rounds and sum(seconds) < ENOUGH:
        begin = clock()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(clock() - begin)
    return seconds


def point_of(curve: Curve, size: int, rounds: int, device: torch.device) -> Point:
    """Measured in this process; the peak by the first call, or on a CPU the first two."""
    run = curve.build(size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        standing = torch.cuda.memory_allocated(device)
        run()
        return Point(timed(run, rounds, device), torch.cuda.max_memory_allocated(device) - standing)
    seconds: list[float] = []
    peak = process_peak(lambda: seconds.extend(timed(run, 1, device)), calls=1)
    return Point([*(timed(run, rounds - 1, device) if sum(seconds) < ENOUGH else []), *seconds], peak)


def fresh_point(curve: Curve, size: int, rounds: int, device: torch.device) -> Point:
    """Measured in a process of its own, forked from this one, which has computed nothing; on a GPU in this one.

    Raises:
        RuntimeError: the process ended without a result.
    """
    if device.type == "cuda":
        return point_of(curve, size, rounds, device)
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def measure(end: Connection) -> None:
        end.send(point_of(curve, size, rounds, device))

    process = context.Process(target=measure, args=(theirs,))
    process.start()
    theirs.close()
    try:
        point: Point = ours.recv()
    except EOFError:
        process.join()
        raise RuntimeError(f"{curve.case} at {size} ended with code {process.exitcode}") from None
    process.join()
    return point


def measured(curve: Curve, sizes: tuple[int, ...], rounds: int, device: torch.device, longest: float) -> Found:
    """The curve at these sizes, as far as a call is expected to take no longer than ``longest`` seconds."""
    found = Found(curve)
    for size in sizes:
        if found.points:
            last = max(found.points)
            expected = min(found.points[last].seconds) * curve.grows(size) / curve.grows(last)
            if expected > longest:
                found.left_out.append(size)
                continue
        found.points[size] = fresh_point(curve, size, rounds, device)
    return found


def append(found: Found, device: torch.device) -> None:
    """Rows of the times, of the peaks, and of the exponents of both."""
    times = {str(size): point.spread for size, point in found.points.items()}
    peaks = {str(size): Spread(*[point.peak / 2**20] * 3) for size, point in found.points.items()}
    exponents = {"time": found.time_exponent, "memory": found.memory_exponent}
    write_rows(BENCH, found.curve.case, device, "us", times)
    write_rows(BENCH, f"{found.curve.case} / memory", device, "MiB", peaks)
    known = {name: Spread(*[value] * 3) for name, value in exponents.items() if value is not None}
    write_rows(BENCH, f"{found.curve.case} / exponent", device, "", known)
    if found.left_out:
        print(f"left out for time: {found.curve.case} at {', '.join(map(str, found.left_out))}", flush=True)


def chosen_curves(device: torch.device, quick: bool, only: tuple[str, ...]) -> Iterator[tuple[Curve, tuple[int, ...]]]:
    """The curves that have a part on this device, each with its sizes."""
    for curve in curves(quick):
        sizes = curve.quick if quick else curve.sizes
        fits = not only or any(word in curve.case for word in only)
        if fits and sizes and (curve.on_gpu or device.type == "cpu"):
            yield curve, sizes


@click.command()
@bench_options(threads=1, rounds=7, keep_memory=True)
@click.option("--quick", is_flag=True, help="Few and small sizes, to see that everything runs.")
@click.option("--strict", is_flag=True, help="Exit code 1 where an exponent is a fault.")
@click.option("--seconds", default=20.0, show_default=True, help="The longest call that is measured.")
@click.option("--only", multiple=True, metavar="WORD", help="Curves whose names contain it; repeat for several.")
def main(device: torch.device, rounds: int, quick: bool, strict: bool, seconds: float, only: tuple[str, ...]) -> None:
    """How time and memory grow with images, classes, pixels and batch."""
    parts: dict[tuple[str, str], float | None] = {}
    faults: list[str] = []
    for curve, sizes in chosen_curves(device, quick, only):
        found = measured(curve, sizes, 2 if quick else rounds, device, seconds)
        append(found, device)
        parts[curve.name, curve.axis] = found.time_exponent
        faults += found.faults(parts.get((curve.part, curve.axis)))
    print("\n".join(faults) or "no exponent is a fault", flush=True)
    sys.exit(1 if faults and strict else 0)


if __name__ == "__main__":
    main()
