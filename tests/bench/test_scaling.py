"""`python -m bench.scaling`: exponents are those of the data, faults are called so, every curve has its rows."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from bench import _scaling_page, scaling
from bench._curves import curves
from bench._fits import exponent, is_fault, larger_half, memory_exponent
from bench._harness import ROOT
from bench.rows import latest, read_rows

SIZES = (10, 100, 1_000, 10_000)
CURVE = next(curve for curve in curves() if curve.name == "shuffle plan")


@pytest.mark.parametrize("power", [0.5, 1.0, 1.25, 2.0])
def test_the_exponent_of_a_power_law_is_found(power: float):
    assert exponent({size: 3.0 * size**power for size in SIZES}) == pytest.approx(power)


def test_constant_overhead_does_not_flatter_a_quadratic_call():
    costs = {size: 1e5 + size**2 for size in SIZES}
    assert larger_half(costs).keys() == {1_000, 10_000}
    assert exponent(costs) > 1.9


def test_of_an_odd_number_of_sizes_the_larger_half_has_the_middle_and_of_two_both():
    assert list(larger_half(dict.fromkeys((1, 2, 3, 4, 5), 1.0))) == [3, 4, 5]
    assert list(larger_half({2: 1.0, 1: 1.0})) == [1, 2]


def test_one_point_and_memory_that_is_noise_have_no_exponent():
    assert exponent({10: 1.0}) is None and exponent({}) is None
    assert memory_exponent({10: 0.01, 100: 1.0}) is None
    assert memory_exponent({10: 1.0, 100: 10.0}) == pytest.approx(1.0)


def test_a_fault_is_above_the_limit_and_above_the_part_that_cannot_be_changed():
    assert is_fault(1.2, 1.1) and not is_fault(1.1, 1.1) and not is_fault(None, 1.1)
    assert is_fault(1.2, 1.1, inevitable=1.0) and not is_fault(1.2, 1.1, inevitable=1.15)


def found_with(power: float, name: str = "shuffle plan") -> scaling.Found:
    points = {size: scaling.Point([1e-6 * size**power, 1e3], 1e6 * size) for size in SIZES}
    return scaling.Found(replace(CURVE, name=name, part=""), points)


@pytest.fixture
def quadratic(monkeypatch: pytest.MonkeyPatch):
    """A bench of one curve, which grows with the square."""
    monkeypatch.setattr(scaling, "curves", lambda quick: [CURVE])
    monkeypatch.setattr(scaling, "measured", lambda *given: found_with(2.0))


@pytest.mark.usefixtures("quadratic")
def test_a_fault_is_named_and_fails_the_strict_bench_only(tmp_path: Path):
    runner, to = CliRunner(), ["--results", str(tmp_path)]
    lenient, strict = (runner.invoke(scaling.main, [*to, *more]) for more in ([], ["--strict"]))
    assert (lenient.exit_code, strict.exit_code) == (0, 1)
    assert all("FAULT: time of shuffle plan / images grows with exponent 2.00" in r.output for r in (lenient, strict))


@pytest.mark.usefixtures("quadratic")
def test_the_page_says_fault_and_names_the_sizes_that_were_left_out(tmp_path: Path):
    CliRunner().invoke(scaling.main, ["--results", str(tmp_path)])
    cases = latest("scaling", read_rows(tmp_path / "scaling.csv"))
    page = _scaling_page.page(cases)
    assert "| shuffle plan | 10 | 10,000 | 100 µs | 100 s | 2.00 | 9,537 MiB | 1.00 | **fault** |" in page
    assert "shuffle plan at 30,000, 100,000, 300,000, 1,000,000, 3,000,000, 10,000,000 (images)" in page
    _scaling_page.write_plot(cases, tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text()


def test_the_committed_page_is_what_the_rows_give():
    cases = latest("scaling", read_rows(_scaling_page.PLOT.with_suffix(".csv")))
    assert _scaling_page.PAGE.read_text() == _scaling_page.page(cases), "run: python -m bench.report"


def test_a_size_that_would_take_too_long_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def point(curve, size, *rest):
        asked.append(size)
        return scaling.Point([float(size)], 0.0)

    monkeypatch.setattr(scaling, "fresh_point", point)
    found = scaling.measured(CURVE, SIZES, 1, torch.device("cpu"), longest=150.0)
    assert asked == [10, 100] and found.left_out == [1_000, 10_000]


def test_a_process_that_dies_is_an_error_and_no_row(monkeypatch: pytest.MonkeyPatch):
    killed = replace(CURVE, build=lambda size, device: lambda: os._exit(9))
    with pytest.raises(RuntimeError, match="ended with code 9"):
        scaling.fresh_point(killed, 10, 1, torch.device("cpu"))


def test_every_curve_runs_and_leaves_its_rows(tmp_path: Path):
    command = [sys.executable, "-m", "bench.scaling", "--quick", "--results", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cases = {case.first.case: case.rows for case in latest("scaling", read_rows(tmp_path / "scaling.csv"))}
    for curve in curves(quick=True):
        assert list(cases.get(curve.case, {})) == [str(size) for size in curve.quick], curve.case
        if curve.quick:
            assert cases[f"{curve.case} / memory"].keys() == cases[curve.case].keys()
            times = {curve.grows(int(size)): row.median for size, row in cases[curve.case].items()}
            assert cases[f"{curve.case} / exponent"]["time"].median == pytest.approx(exponent(times), abs=0.02)
