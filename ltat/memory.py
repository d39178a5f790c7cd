"""How much memory may still be taken, and files that would take more."""

import os
import zipfile
from pathlib import Path

from ltat.errors import LtatError


def free_memory() -> int:
    """Bytes of this machine's memory that may still be taken, within the limit of a container."""
    return int(min(_available(Path("/proc/meminfo")), _container(Path("/sys/fs/cgroup"))))


def require_memory_for(path: Path) -> None:
    """Refuse a file that takes more memory than is free; of an archive its unpacked size counts.

    Raises:
        LtatError: naming the file and both amounts.
        OSError: the file cannot be read.
        zipfile.BadZipFile: it is a damaged archive.
    """
    needed, free = unpacked_size(path), free_memory()
    if needed > free:
        raise LtatError(
            f"{path} takes {needed / 1e9:,.1f} GB of memory, of which {free / 1e9:,.1f} GB are free; "
            "free some, or store less in one file"
        )


def unpacked_size(path: Path) -> int:
    """Bytes of a file's content, once it is unpacked where it is a zip archive."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def _available(meminfo: Path) -> int:
    if not meminfo.exists():  # not Linux: the free part is not known
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    lines = meminfo.read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _container(group: Path) -> float:
    try:
        limit, used, kinds = ((group / f"memory.{name}").read_text() for name in ("max", "current", "stat"))
    except OSError:
        return float("inf")
    if limit.strip() == "max":
        return float("inf")
    # Files read lately count as used, and are given up as soon as memory is asked for.
    cached = next(int(line.split()[1]) for line in kinds.splitlines() if line.startswith("inactive_file "))
    return max(0, int(limit) - int(used) + cached)
