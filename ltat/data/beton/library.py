"""FFCV, imported when it is first needed and kept from altering the process around it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ltat.errors import LtatError

INSTALL = "python -m ltat.install_ffcv"


def load_ffcv() -> None:
    """Import FFCV (three seconds) and undo its effects on the rest of the process.

    It sets torch's number of threads: on import, for every loader, and from every loader's thread. And every loader
    turns a type that Numba shares among all functions into a read-only one, which breaks functions compiled before.
    Both methods are replaced here, once and for all of FFCV.

    Raises:
        LtatError: FFCV is missing or cannot be loaded, with the line that installs it.
    """
    threads = torch.get_num_threads()
    try:
        from ffcv.memory_managers import OSCacheManager  # noqa: PLC0415
        from ffcv.pipeline.compiler import Compiler  # noqa: PLC0415
    except Exception as error:  # a broken build fails with whatever its libraries raise
        raise LtatError(f"FFCV is missing or broken ({error}); install it with {INSTALL}") from error
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
    Compiler.set_num_threads = classmethod(_set_numba_threads)
    OSCacheManager.compile_reader = _reader


def _set_numba_threads(compiler: Any, n: int) -> None:
    from numba import set_num_threads  # noqa: PLC0415

    set_num_threads(n)
    compiler.num_threads = n


def _reader(manager: Any) -> Callable[..., Any]:
    from ffcv.pipeline.compiler import Compiler  # noqa: PLC0415

    def read(address, state):  # type: ignore[no-untyped-def]
        content, pointers, sizes = state
        k = np.searchsorted(pointers, address)
        return content[address : address + sizes[k]]

    return Compiler.compile(read)
