"""Every GPU that torch supports finds code in the library, and who names other architectures gets those."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = shutil.which("cmake", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
NVCC = shutil.which("nvcc")

pytestmark = pytest.mark.skipif(CMAKE is None, reason="needs cmake")

NEWER = [75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121]
BLACKWELL = {100, 103, 110, 120, 121}
NVCC_12 = [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90]
NVCC_13 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]
# By version of nvcc: the compute capabilities that torch's builds for it run on (and one to come), those of them that
# are left to PTX, and the architectures that this nvcc makes.
CASES = {
    "12.6.85": ([50, 52, 60, 61, 70, *NEWER], {50, 52, 60, 61, 70, 87, *BLACKWELL}, NVCC_12),
    "12.8.61": ([70, *NEWER, 130], {70, 87, 110, 130}, [*NVCC_12, 100, 101, 120]),
    "12.9.86": ([70, *NEWER, 130], {70, 87, 110, 130}, [*NVCC_12, 100, 101, 103, 120, 121]),
    "13.0.88": ([*NEWER, 130], {87, 130}, NVCC_13),
    "14.0.0": ([*NEWER, 130], {87, 130}, NVCC_13),
}
TEGRA = (53, 62, 72, 87, 110)  # for these NVIDIA promises no image of another architecture


def default_architectures(nvcc: str, folder: Path) -> list[str]:
    """What `CMakeLists.txt` takes for a version of nvcc."""
    function = re.search(
        r"^function\(ltat_architectures .*?^endfunction\(\)", (ROOT / "CMakeLists.txt").read_text(), re.M | re.S
    )
    script = folder / "architectures.cmake"
    call = f'ltat_architectures({nvcc} found)\nmessage("${{found}}")'
    script.write_text(f"cmake_minimum_required(VERSION 3.25)\n{function[0]}\n{call}\n")
    done = subprocess.run([CMAKE, "-P", script], capture_output=True, text=True, check=True, timeout=60)
    return done.stderr.strip().split(";")


def made_for(entry: str) -> int:
    return int(entry.removesuffix("-real").removesuffix("-virtual"))


def image_serves(entry: str, gpu: int) -> bool:
    """NVIDIA's rule: an image runs on later GPUs of its major version."""
    made = made_for(entry)
    fits = made == gpu if gpu in TEGRA else made // 10 == gpu // 10 and made <= gpu
    return fits and not entry.endswith("-virtual")


def ptx_serves(entry: str, gpu: int) -> bool:
    """PTX is compiled for any later GPU."""
    return made_for(entry) <= gpu and not entry.endswith("-real")


@pytest.mark.parametrize("nvcc", CASES)
def test_every_gpu_of_torch_has_code_and_no_entry_is_to_spare(nvcc: str, tmp_path: Path):
    gpus, left_to_ptx, known = CASES[nvcc]
    entries = default_architectures(nvcc, tmp_path)
    assert set(map(made_for, entries)) <= set(known)
    imaged = {gpu: [entry for entry in entries if image_serves(entry, gpu)] for gpu in gpus}
    others = {gpu: [entry for entry in entries if ptx_serves(entry, gpu)] for gpu in gpus if not imaged[gpu]}
    assert all(others.values()) and others.keys() == left_to_ptx
    alone = {serving[0] for serving in (*imaged.values(), *others.values()) if len(serving) == 1}
    assert alone == set(entries)


def test_the_page_on_the_kernels_names_the_default_list(tmp_path: Path):
    page = (ROOT / "docs/native.md").read_text()
    for nvcc in ("12.6.85", "12.8.61", "13.0.88"):
        assert f"`{';'.join(default_architectures(nvcc, tmp_path))}`" in page


class Folder:
    """A build folder that is configured again and again; nothing is compiled but CMake's own trials."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def configure(self, *options: str, **environment: str) -> str:
        """The architectures that the kernels would be compiled for."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("LTAT_", "CUDAARCHS"))}
        command = [CMAKE, "-S", ROOT, "-B", self.path, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}"]
        command += ["-DLTAT_CUDA=ON", "-DLTAT_TESTS=OFF", f"-DLTAT_OUTPUT_DIR={self.path / 'out'}", *options]
        run = subprocess.run(command, env=env | environment, capture_output=True, text=True, timeout=120, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        flags = re.search(r"^ *FLAGS = (.*--generate-code.*)$", (self.path / "build.ninja").read_text(), re.M)
        return " ".join(re.findall(r"code=\[([^]]*)\]", flags[1]))


@pytest.mark.skipif(
    NVCC is None or shutil.which("ninja", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None,
    reason="needs nvcc and ninja",
)
def test_the_architectures_asked_for_are_built_also_in_a_folder_that_was_configured_for_others(tmp_path: Path):
    folder = Folder(tmp_path / "build")
    # Whether nvcc knows an architecture is its own to say: CMake would take the compiler for a broken one.
    assert folder.configure(CUDAARCHS="50-real") == "sm_50"
    assert folder.configure(CUDAARCHS="80-real;120") == "sm_80 compute_120,sm_120"
    default = folder.configure()  # what the environment once said is forgotten
    assert {"compute_75,sm_75", "sm_80", "sm_120"} <= set(default.split())
    assert folder.configure("-DCMAKE_CUDA_ARCHITECTURES=86-real") == "sm_86"
    assert folder.configure() == "sm_86"  # that of the command line is kept, as CMake keeps all of them
    assert folder.configure(CUDAARCHS="90-real") == "sm_90"
    assert folder.configure() == "sm_86"
    (cache := folder.path / "CMakeCache.txt").write_text(
        re.sub(
            r"(//).*\nCMAKE_CUDA_ARCHITECTURES.*\n",
            r"\1CUDA architectures\nCMAKE_CUDA_ARCHITECTURES:STRING=70\n",
            cache_text(folder),
        )
    )
    assert cache.read_text().count("CMAKE_CUDA_ARCHITECTURES:STRING=70") == 1
    assert folder.configure() == default  # CMake's own guess, in a folder of an older version


def cache_text(folder: Folder) -> str:
    return (folder.path / "CMakeCache.txt").read_text()
