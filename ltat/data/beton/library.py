"""FFCV, imported when it is first needed and kept from altering the process around it."""

import torch

from ltat.errors import LtatError

INSTALL = "python -m ltat.install_ffcv"


def load_ffcv() -> None:
    """Import FFCV (three seconds), so that torch computes with as many threads afterwards as before.

    FFCV sets torch's threads for the whole process: on import, for every loader, and from every loader's thread. Its
    setter is replaced here by one that touches Numba's threads alone.

    Raises:
        LtatError: FFCV is missing or cannot be loaded, with the line that installs it.
    """
    threads = torch.get_num_threads()
    try:
        from ffcv.pipeline.compiler import Compiler  # noqa: PLC0415
    except Exception as error:  # a broken build fails with whatever its libraries raise
        raise LtatError(f"FFCV is missing or broken ({error}); install it with {INSTALL}") from error
    finally:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
    Compiler.set_num_threads = classmethod(_set_numba_threads)


def _set_numba_threads(compiler: type, n: int) -> None:
    from numba import set_num_threads  # noqa: PLC0415

    set_num_threads(n)
    compiler.num_threads = n  # type: ignore[attr-defined]
