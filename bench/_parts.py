"""What `python -m bench.gpu` runs, in order of value."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bench import BENCHES
from bench._running import Part, Stage

SITE = "site"  # in a folder of `python -m bench.carry`: the packages, and the images
PACKED = {"train": "train.webp.npz", "test": "test.webp.npz"}
OUR_KERNELS = ("--kernel-name", "kns=ltat")  # by a part of their mangled names, which the namespace is in
SLOW_TESTS = ("any_shape", "any_form", "row_is_the_same", "contract")
PASSED, SKIPPED = r"\d+ passed", "needs a CUDA device"
WITH_PARTS_OF_THEIR_OWN = ("end_to_end", "train_step")
OF_THE_HOST = ("startup", "distributed")  # two ranks cannot share one GPU
USUAL = (40, 10)
LIMIT_AND_ROUNDS = {"attack": (40, 7), "loader": (40, 2), "pgd_step": (50, 10), "scaling": (150, 5)}
"""The seconds and rounds of the benches for which the usual ones do not fit."""


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


def operations() -> list[Part]:
    """Every other bench that a GPU has a part in, those to come included."""
    names = [name for name in BENCHES if name not in (*WITH_PARTS_OF_THEIR_OWN, *OF_THE_HOST)]
    return [bench(name, *LIMIT_AND_ROUNDS.get(name, USUAL)) for name in names]


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
    return Part(part, python("-m", "bench.paper_run", str(out / part), *data, *options), limit)


def all_stages(out: Path, data_dir: Path | None) -> list[Stage]:
    """The parts in their order, what matters most first. What is timed is alone, the rest runs side by side.

    Nothing compiles by torch.compile, which takes minutes, before every bench has written its other rows.
    """
    build = Part("build", python("setup.py", "build_ext", "--inplace"), 180, first=True)
    checks = (
        tests("tests", 100, "tests", "-k", "(cuda or gpu) and not capture"),
        tests("capture", 120, "tests", "-k", "capture", "-m", "skipif"),  # those that a CPU alone would skip
        sanitizer("memcheck", *OUR_KERNELS),
        sanitizer("racecheck", *OUR_KERNELS),
        sanitizer("synccheck", *OUR_KERNELS),
        sanitizer("initcheck"),  # watches all kernels: what one that it does not watch has written would be an error
    )
    timed = (
        Part("ceilings", python("-m", "bench.ceilings", str(out / "ceilings.json")), 30),
        training(out, data_dir, 420),
        bench("end_to_end", 150, 2),
        train_step("32", 50, "--no-memory", part="train_step_32"),
        train_step("128", 90, part="train_step_128"),
        *operations(),
        bench("pgd_step", 50, 10, part="pgd_step_compiled", modes="default"),
        bench("balanced_kd", 60, 10, part="balanced_kd_compiled", modes="default"),
        bench("attack", 60, 7, part="attack_compiled", modes="reduce-overhead"),
        train_step("128", 120, "--no-memory", part="train_step_compiled", modes="reduce-overhead"),
        training(out, data_dir, 60, "--epochs", "2", "--set", "train.graph=false", part="training_eager"),
    )
    return [(build,), checks, *((part,) for part in timed)]
