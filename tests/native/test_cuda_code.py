"""What nvcc makes of the CUDA kernels: nothing in local memory, the registers that the page states, wide accesses."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "kernels").glob("*_cuda.cu"))
PAGE = ROOT / "docs" / "native.md"

ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_90'")
LOCAL = re.compile(r"(\d+) bytes (?:stack frame|spill stores|spill loads|lmem)")
REGISTERS = re.compile(r"Used (\d+) registers")
PTX_BODY = re.compile(r"^(?:\.visible )?\.entry (\w+)\((.*?)^\}", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(\w+)` \| `([^`]*)` \| (\d+) \| (\d+) \|$", re.MULTILINE)
WIDE = r"\.global\S*\.(?:v4\.\w32|v2\.\w64)"

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None or shutil.which("ptxas") is None, reason="needs nvcc and ptxas"
)


class Kernel(NamedTuple):
    registers: int
    local_bytes: int
    body: str  # PTX


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@cache
def kernels(source: Path) -> dict[str, Kernel]:
    """The kernels of one file by name and template arguments, as `rows_kernel<32, 8>`, compiled for sm_90."""
    with TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        run("nvcc", "-std=c++20", "-O3", "-arch=sm_90", "-ptx", source, "-o", ptx)
        report = run("ptxas", "-O3", "-v", "-arch=sm_90", ptx, "-o", Path(folder) / "kernels.cubin")
        bodies = dict(PTX_BODY.findall(ptx.read_text()))
    _, *parts = ENTRY.split(report)
    found = {}
    for name, mangled, text in zip(names_of(parts[::2]), parts[::2], parts[1::2], strict=True):
        registers = int(REGISTERS.search(text)[1])
        local_bytes = sum(map(int, LOCAL.findall(text)))
        found[name] = Kernel(registers, local_bytes, bodies[mangled])
    return found


def names_of(mangled: list[str]) -> list[str]:
    plain = subprocess.run(["c++filt", *mangled], capture_output=True, text=True, check=True).stdout
    return [re.search(r"(\w+_kernel(?:<[^>]*>)?)\(", line)[1].replace("ltat::", "") for line in plain.splitlines()]


def stated(source: Path) -> dict[str, int]:
    """By kernel, or by kernel and template arguments, the most registers that the page grants those of one file."""
    rows = ROW.findall(PAGE.read_text())
    return {kernel: int(most) for stem, kernel, _, most in rows if f"{stem}_cuda.cu" == source.name}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_no_kernel_spills_or_keeps_anything_in_local_memory(source):
    assert {name: kernel.local_bytes for name, kernel in kernels(source).items() if kernel.local_bytes} == {}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_kernel_keeps_to_the_registers_that_the_page_states(source):
    most = stated(source)
    rows = {name: name if name in most else name.partition("<")[0] for name in kernels(source)}
    assert set(rows.values()) == set(most), "the table of docs/native.md lists other kernels"
    above = {name: kernel.registers for name, kernel in kernels(source).items() if kernel.registers > most[rows[name]]}
    assert above == {}


@pytest.mark.parametrize(
    ("stem", "name", "accesses"),
    [
        ("balanced_kd", r"rows_kernel<\d+, 8>", ("ld", "st")),
        ("gather_augment", r"gather_kernel<BFloat16, \w+, 8>", ("st",)),
        ("gather_augment", r"gather_kernel<float, \w+, 4>", ("st",)),
        ("pgd_step", r"(linf|l2|l2_write)_kernel<\w+>", ("ld", "st")),
        ("pgd_step", r"l2_(grad|delta)_kernel<float>", ("ld",)),
    ],
)
def test_wide_rows_and_vectors_are_moved_sixteen_bytes_at_once(stem, name, accesses):
    bodies = [
        kernel.body
        for found, kernel in kernels(ROOT / "csrc" / "kernels" / f"{stem}_cuda.cu").items()
        if re.fullmatch(name, found)
    ]
    assert bodies
    for body in bodies:
        for access in accesses:
            assert re.search(access + WIDE, body), f"no {access} of 16 bytes"
