"""Every link of the documents, and every page that a source, recipe or test names, leads somewhere."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "CHANGELOG.md"]
SOURCES = [
    path
    for folder in ("ltat", "bench", "tests", "csrc")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".py", ".toml", ".h", ".cpp", ".cu"}
]
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?://)([^)\s#]*)(?:#([^)\s]*))?\)")
FILE = re.compile(r"`((?:ltat|csrc|bench|tests)/[\w/.-]+\.(?:py|h|cpp|cu|md|csv))`")
NAMED = re.compile(r"(?<![\w/.])docs/[\w/+-]+\.md")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: a repeated heading gets ``-1``, ``-2``, ..."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def dead_links(page: Path, text: str) -> list[str]:
    """The relative links of ``text``, which stands in ``page``, whose file or heading does not exist."""
    dead = []
    for target, anchor in LINK.findall(CODE.sub("", text)):
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            dead.append(f"{target}#{anchor}" if anchor else target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_link_of_a_document_is_dead(page):
    assert dead_links(page, page.read_text(encoding="utf-8")) == []


def test_no_source_recipe_or_test_names_a_page_that_is_gone():
    pages = {(path, name) for path in SOURCES for name in NAMED.findall(path.read_text(encoding="utf-8"))}
    assert len(pages) > 10
    assert sorted(f"{path.relative_to(ROOT)}: {name}" for path, name in pages if not (ROOT / name).exists()) == []


@pytest.mark.parametrize("page", PAGES[:-1], ids=lambda page: str(page.relative_to(ROOT)))
def test_no_document_names_a_file_that_is_gone(page):
    named = FILE.findall(page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_dead_links_are_found():
    page = ROOT / "docs" / "design.md"
    text = "[a](engine.md) [b](nowhere.md) [c](engine.md#nowhere) [d](#design) [e](https://x.y/z) `[f](code.md)`"
    assert dead_links(page, text) == ["nowhere.md", "engine.md#nowhere"]


def test_every_method_has_a_page_in_the_table_of_methods():
    from ltat.methods import METHODS

    table = (ROOT / "docs" / "methods" / "README.md").read_text(encoding="utf-8")
    first_cells = "\n".join(re.findall(r"^\| (\[.*?\]\(.*?\)) \|", table, re.MULTILINE))
    assert [name for name in METHODS if f"`{name}`" not in first_cells] == []
