"""A plugin of pytest: the tests of the operators run over the emulated CUDA kernels, once for each order of threads.

It is loaded by ``-p tests.native.emulated_ops`` in a process of its own, because a process can hold only one library of
operators.
"""

from pathlib import Path

import pytest
import torch

from ltat import native

# Parameters of the fixtures of tests/ops: on these the native operators are called.
NATIVE = ("cpu-native", "cpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--operators", type=Path, required=True, help="the library _ops_emulated")
    parser.addoption("--orders", required=True, help="orders of threads, separated by commas")


def pytest_configure(config: pytest.Config) -> None:
    native._OPS = config.getoption("operators")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    metafunc.parametrize("order", metafunc.config.getoption("orders").split(","), indirect=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def is_native(item: pytest.Item) -> bool:
        given = item.callspec.params
        return given.get("device", given.get("native_device", "cpu")) in NATIVE

    items[:] = [item for item in items if is_native(item)]


@pytest.fixture(autouse=True)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTAT_EMULATED_ORDER", request.param)


@pytest.fixture(autouse=True, scope="session")
def really_emulated() -> None:
    """Only the emulation knows orders of threads, and refuses one that there is not."""
    from ltat.ops import pgd_step

    with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match="LTAT_EMULATED_ORDER is sideways"):
        patch.setenv("LTAT_EMULATED_ORDER", "sideways")
        pgd_step(*[torch.ones(1, 1)] * 3, eps=1.0, step=1.0)
