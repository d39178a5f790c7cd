"""Every error is one sentence of one form: ``what is wrong (value); what to do``."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = sorted((Path(__file__).resolve().parents[1] / "ltat").rglob("*.py"))
KINDS = ("LtatError", "ClickException", "UsageError")
VALUE = "{}"
COLON = re.compile(r": (use|choose|run|give) ")


def sentences(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of each error that a module raises with a text of its own; ``{}`` where a value stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(KINDS) and node.args:
            text = "".join(_pieces(node.args[0]))
            if text != VALUE:
                yield node.lineno, text


def _pieces(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.JoinedStr):
        for part in node.values:
            yield from _pieces(part) if isinstance(part, ast.Constant) else [VALUE]
    elif isinstance(node, ast.BinOp):
        yield from _pieces(node.left)
        yield from _pieces(node.right)
    else:
        yield VALUE


def malformed(source: str) -> list[str]:
    """The errors without a remedy behind a semicolon; a value at the end is another error's sentence or a remedy."""
    return [f"{line}: {text}" for line, text in sentences(source) if "; " not in text and not _forwards(text)]


def _forwards(sentence: str) -> bool:
    return sentence.endswith(VALUE) and not COLON.search(sentence)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parent)))
def test_every_error_names_what_to_do_behind_a_semicolon(path):
    assert malformed(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("call", "found"),
    [
        ("LtatError(f'eps is {eps}; give a number')", 0),
        ("LtatError(f'{path}: {error}')", 0),
        ("LtatError(str(error))", 0),
        ("LtatError(f'eps is {eps}: give a number')", 1),
        ("LtatError(f'unknown norm {norm}: use one of {names}')", 1),
        ("LtatError('the label does not fit')", 1),
    ],
)
def test_another_form_is_found(call, found):
    assert len(malformed(call)) == found
