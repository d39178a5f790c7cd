"""The plan of the package: who may import whom, without circles, and files and functions that fit a screen."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ltat"

LAYERS = (
    "__init__ arguments errors files installed install_ffcv interrupts joint_work memory native ranks seeding streams"
    " temporaries torchrun units",
    "ops",
    "theory",
    "data",
    "models",
    "config",
    "engine",
    "attacks",
    "methods",
    "evaluation",
    "training",
    "sweeps",
    "reproduce",
    "cli",
    "__main__",
)
"""From the bottom up: a file imports from its own layer and from those above it in this list, from no other."""

SCREENS = {"attacks/pgd.py": 80, "methods/base.py": 150, "training/trainer.py": 150}
"""Lines within which a reader sees the algorithm, and the contract of a method."""

LONGEST_FUNCTION = 60  # lines, docstring and signature included


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"))


def imports(module: str) -> set[str]:
    """The modules of the package that a module names in any import: of a function, or for type checkers, too."""
    found = {name for node in ast.walk(tree(module)) for name in imported(node)}
    return {name for name in found if name in MODULES and name != module}


def imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module:
        for alias in node.names:
            below = f"{node.module}.{alias.name}"
            yield below if below in MODULES else node.module


def layer(module: str) -> int:
    name = module.split(".")[1] if "." in module else "__init__"
    return next(rank for rank, names in enumerate(LAYERS) if name in names.split())


def upward(graph: dict[str, set[str]]) -> list[str]:
    return [f"{one} imports {other}" for one in graph for other in sorted(graph[one]) if layer(other) > layer(one)]


def circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


GRAPH = {module: imports(module) for module in MODULES}


def test_every_import_goes_down_the_layers():
    assert upward(GRAPH) == []


def test_no_files_import_each_other_in_a_circle():
    assert circle(GRAPH) == []


def test_an_import_up_the_layers_and_a_circle_are_found():
    up = {"ltat.ops.checks": {"ltat.training.run"}, "ltat.training.run": set()}
    assert upward(up) == ["ltat.ops.checks imports ltat.training.run"]
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


@pytest.mark.parametrize("name", SCREENS)
def test_the_algorithm_fits_its_screen(name: str):
    lines = len((PACKAGE / name).read_text(encoding="utf-8").splitlines())
    assert lines <= SCREENS[name], f"{name} has {lines} lines"


@pytest.mark.parametrize("module", MODULES)
def test_no_function_is_longer_than_a_screen(module: str):
    functions = (node for node in ast.walk(tree(module)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    lengths = {node.name: (node.end_lineno or node.lineno) - node.lineno + 1 for node in functions}
    assert {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION} == {}
