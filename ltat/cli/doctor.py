"""`ltat doctor`; it works whatever is missing, so it imports nothing but click before it knows."""

import platform
import shutil

import click

from ltat import __version__
from ltat.installed import OPTIONAL, optional_versions, package_versions


@click.command("doctor")
def command() -> None:
    """Show versions, devices and the native build, and for what is missing the line that fixes it."""
    versions = package_versions()
    click.echo(f"ltat {__version__}, Python {platform.python_version()}, {platform.platform()}")
    for name, version in versions.items():
        click.echo(f"  {name} {version or 'missing'}")
    for name, version in optional_versions().items():
        click.echo(f"  {name} {version or f'missing (optional): {OPTIONAL[name]}'}")
    missing = [f"{name} is missing: pip install {name}" for name, version in versions.items() if version is None]
    for line in [*torch_lines(), *native_lines(), *missing]:
        click.echo(line)


def torch_lines() -> list[str]:
    """Threads, and the GPUs that torch sees or why none; what is wrong where torch cannot be imported."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [f"torch cannot be imported ({error}); fix: pip install torch"]
    return [f"threads: {torch.get_num_threads()}", f"half precision on the CPU: {half_line()}", f"GPU: {gpu_line()}"]


def half_line() -> str:
    """The half precisions that this processor computes in."""
    from ltat.engine.precision import PRECISIONS, has_instructions_for

    halves = [name for name in PRECISIONS if name != "fp32"]
    slow = [name for name in halves if not has_instructions_for(name)]
    return f"{' and '.join(slow)} emulated, many times slower than fp32" if slow else "has its own instructions"


def gpu_line() -> str:
    """The GPUs that torch sees, or why none."""
    import torch

    if torch.cuda.is_available():
        return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    built = torch.version.cuda
    return f"none (torch is built for CUDA {built} and sees no device)" if built else "none (torch is a CPU build)"


def native_lines() -> list[str]:
    """The state of the compiled kernels, and how to build what is not there."""
    from ltat import native

    status = native.status()
    heading = "native kernels: built" if status.ops else "native kernels: not in use; the slower PyTorch twins run"
    lines = [heading] + [f"  {key}: {value}" for key, value in (native.build_info() or {}).items()]
    if status.problem is not None:
        lines += [f"  problem: {status.problem}", f"  fix: {status.remedy}"]
    elif not status.cuda:
        hint = "LTAT_CUDA=ON make build" if shutil.which("nvcc") else "install the CUDA toolkit (nvcc), then make build"
        lines.append(f"  CUDA kernels: not built; fix: {hint}")
    return lines + (kernel_lines() if status.cuda else [])


def kernel_lines() -> list[str]:
    """Whether the CUDA kernels run on each GPU that torch sees, and how to build them for it."""
    import torch

    from ltat import native

    if not torch.cuda.is_available():
        return []
    devices = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    return [f"  on {device}: {native.problem_on(device) or 'the CUDA kernels run'}" for device in devices]
