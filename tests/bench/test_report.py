"""The performance page and the README's table say what the rows say."""

from pathlib import Path

import pytest

from bench import report
from bench.rows import Measured, Row, latest
from bench.targets import TARGETS, Target, above, bandwidth, ratio


def row(candidate: str, median: float, **facts: object) -> Row:
    common = {"date": "2026-01-01", "hardware": "A CPU", "torch": "2", "threads": 1, "commit": "abc", "case": "c"}
    numbers = {"unit": "us", "median": median, "p20": median, "p80": median, "bytes": None}
    return Row(**{**common, **numbers, "candidate": candidate, **facts})


def test_the_committed_page_is_what_the_rows_give():
    measured = report.read_all(report.ROOT / "bench" / "results")
    assert report.PAGE.read_text() == report.page(measured), "run: python -m bench.report"
    readme = report.README.read_text()
    assert readme == report.with_table(readme, measured), "run: python -m bench.report"


def test_every_committed_row_can_be_read_and_names_a_known_bench():
    files = {file.stem for file in (report.ROOT / "bench" / "results").glob("*.csv")}
    assert files <= set(report.BENCHES)
    assert all(case.rows for cases in report.read_all(report.ROOT / "bench" / "results").values() for case in cases)


def test_candidates_are_compared_within_the_last_run_only():
    old = [row("eager", 10), row("native", 1)]
    same_commit_again = [row("eager", 30), row("native", 2)]
    later = [row("eager", 50, commit="def")]
    (found,) = latest("b", old + same_commit_again)
    assert {name: r.median for name, r in found.rows.items()} == {"eager": 30, "native": 2}
    (found,) = latest("b", old + same_commit_again + later)
    assert found.rows.keys() == {"eager"}


def test_machines_threads_and_cases_are_kept_apart():
    rows = [row("a", 1), row("a", 2, threads=2), row("a", 3, hardware="NVIDIA H200"), row("a", 4, case="d")]
    assert len(latest("b", rows)) == 4


@pytest.mark.parametrize(
    ("ask", "limit", "met"),
    [
        (ratio("native", "eager"), 4, True),
        (ratio("native", "eager"), 6, False),
        (bandwidth("native", "copy"), None, False),
        (above("eager", "native", 0.3), None, True),
    ],
)
def test_targets_are_met_in_the_right_direction(ask: dict, limit: float | None, met: bool):
    # native moves 400 kB in 2 us, 200 GB/s, and a copy 300 GB/s: two thirds of the bandwidth
    rows = {"eager": row("eager", 10), "native": row("native", 2, bytes=400_000), "copy": row("copy", 1, bytes=300_000)}
    assert Target("what", "b", "c", **({"limit": limit} if limit else {}), **ask).met(rows) is met


def test_a_losing_row_is_shown_with_its_speed():
    case = Measured("pgd_step", {"eager": row("eager", 10), "native": row("native", 20)})
    assert "| native | 20 µs | 20 µs – 20 µs | 0.50× |" in report.bench_part("pgd_step", [case])


def test_more_images_per_second_are_faster_and_fewer_slower():
    rows = {"dataloader-v2": row("dataloader-v2", 100, unit="images/s"), "ours": row("ours", 50, unit="images/s")}
    assert report.case_rows(Measured("loader", rows))[1][4] == "0.50×"


def test_a_missed_target_says_by_how_much():
    target = Target("what", "b", "c", limit=4, **ratio("native", "eager"))
    measured = {"b": [Measured("b", {"eager": row("eager", 30), "native": row("native", 10)})]}
    assert report.verdict(target, measured) == "missed by 1.00×"


def test_the_readme_outside_the_marks_is_left_alone():
    text = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    new = report.with_table(text, {})
    assert new.startswith("before\n") and new.endswith("\nafter\n") and "old" not in new
    assert report.with_table("no marks", {}) == "no marks"


def test_a_cpu_row_never_answers_a_gpu_target():
    for target in TARGETS:
        if target.on_gpu:
            rows = {name: row(name, 1, case=target.case, bytes=1) for name in target.needs}
            assert report.find(target, {target.bench: [Measured(target.bench, rows)]}) is None


def test_every_target_asks_a_bench_that_there_is():
    assert {target.bench for target in TARGETS} <= set(report.BENCHES)
    assert all((Path(report.ROOT) / "bench" / f"{target.bench}.py").exists() for target in TARGETS)
