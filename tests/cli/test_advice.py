"""What the package and its pages advise exists: every option, setting and command that they name."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from ltat.cli.main import COMMANDS, main
from ltat.config import Section
from ltat.config.renamed import NAMES
from ltat.methods import METHODS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md"]
SOURCES = sorted((ROOT / "ltat").rglob("*.py"))

OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]*")
COMMAND = re.compile(r"(?:^ {4}|`|: |; |run )ltat ([a-z]+)(?![\w.])", re.MULTILINE)
FORMATS = {"state"}  # a file that begins with `ltat state` is no command
OTHERS = {"--help", "--no-build-isolation", "--test-dir", "--version", "--yes"}  # of click, pip, ctest and install_ffcv
OTHERS |= {"--porcelain", "--short", "--untracked-files"}  # of git
OTHERS |= {"--requeue", "--seconds", "--strict"}  # of sbatch and bench.scaling
OTHERS |= {"--nproc-per-node", "--nnodes", "--max-restarts"}  # of torchrun
OTHERS |= {"--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--ntasks-per-node"}  # of torchrun and srun
SCRIPT = re.compile(r"python -m tests\..*")  # whose options are not those of ltat
FILES = re.compile(r"\.(md|npz|beton|py|json|safetensors|toml)\b")


def advice(path: Path) -> str:
    """What the file says: a page itself, and of a module every text in it, docstrings too."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    said = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant | ast.JoinedStr))
    return "\n".join("".join(words(node)) for node in said)


def words(node: ast.AST) -> Iterator[str]:
    """The texts below a node, in order, with a blank where a value is put in."""
    if isinstance(node, ast.Constant):
        yield node.value if isinstance(node.value, str) else ""
    elif isinstance(node, ast.FormattedValue):
        yield " "
    else:
        for below in ast.iter_child_nodes(node):
            yield from words(below)


def options(command: click.Command) -> set[str]:
    own = {name for one in command.params if isinstance(one, click.Option) for name in (*one.opts, *one.secondary_opts)}
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            own |= options(below)
    return own


def settings(kind: type[Section], prefix: str = "") -> set[str]:
    names = set()
    for name, field in kind.model_fields.items():
        names.add(dotted := prefix + (field.alias or name))
        section = kind.section(name)
        names |= settings(section, f"{dotted}.") if section else set()
    return names


SETTINGS = set().union(*(settings(method.Config) for method in METHODS.values()))
SECTIONS = {name.partition(".")[0] for name in SETTINGS if "." in name}
SETTING = re.compile(rf"(?<![\w./-])(?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z_]+)+(?![\w(/])")


@pytest.mark.parametrize("path", [*SOURCES, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_advised_exists(path: Path):
    said = advice(path)
    if path.name != "install_ffcv.py":  # which speaks to pip and pkg-config
        assert set(OPTION.findall(SCRIPT.sub("", said))) <= options(main) | OTHERS
    named = {name for name in SETTING.findall(said) if not FILES.search(name) and not name.startswith("data.train")}
    assert {name for name in named if name not in SETTINGS} - set(NAMES) == set()
    assert set(COMMAND.findall(said)) <= set(COMMANDS) | FORMATS


UNPROVEN = re.compile(r"first open|no public (code|implementation)|the paper's (own )?words|over ranks", re.IGNORECASE)
TEXTS = [*PAGES, ROOT / "CHANGELOG.md", *SOURCES, *sorted((ROOT / "ltat" / "recipes").rglob("*.toml"))]


def test_nothing_is_claimed_that_nobody_has_seen_or_run():
    assert [path.name for path in TEXTS if UNPROVEN.search(" ".join(path.read_text(encoding="utf-8").split()))] == []


def test_the_search_finds_what_it_looks_for():
    assert SETTING.findall("use `train.graph=false`, or select.from") == ["train.graph", "select.from"]
    assert OPTION.findall("add --resume, a--b") == ["--resume"]
    assert COMMAND.findall("try it: ltat trian\n    ltat evil x; see `ltat doctor`") == ["trian", "evil", "doctor"]
    assert sum(len(OPTION.findall(advice(path))) for path in SOURCES) > 20
