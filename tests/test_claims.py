"""The documents claim nothing about the project's place or powers that nobody can check or that nothing runs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = {
    r"\b(first|only) (open|public)(ly available)?([- ]source)? (implementation|code)": "nobody can know it",
    r"\b(first|only) implementation": "nobody can know it",
    r"\bno (public|open|official)([- ]source)? (code|implementation)": "the authors' code is a supplement, not seen",
    r"\bcode (is|was) (not|never) (public|published|released)": "the authors' code is a supplement, not seen",
    r"\bpaper's (own )?words": "what is not in the paper's text is read from its reviews",
    r"\bofficial (code|implementation) of (the paper|LTAT)": "this is an independent reconstruction",
    r"\bmulti[- ]?GPU|\b(several|many|multiple) GPUs": "several ranks have run on CPUs only",
    r"\bstate[- ]of[- ]the[- ]art|\bSOTA\b": "no table of ours shows it",
}
TEXTS = {
    "documents": ["README.md", "CHANGELOG.md", "docs/**/*.md"],
    "sources": ["ltat/**/*.py"],
    "recipes": ["ltat/recipes/**/*.toml"],
}


def claims(text: str) -> list[str]:
    """Every claim of the table in ``text``, over line breaks too: ``line: words: what is wrong with it``."""
    text = re.sub(r"\n[ \t]*#+", "\n", text)  # a claim may run on in the next line of a comment
    return [
        f"{text.count(chr(10), 0, match.start()) + 1}: {' '.join(match[0].split())!r}: {why}"
        for pattern, why in CLAIMS.items()
        for match in re.finditer(pattern.replace(" ", r"\s+"), text, re.IGNORECASE)
    ]


@pytest.mark.parametrize("kind", TEXTS)
def test_no_text_claims_what_nobody_can_check_or_nothing_runs(kind):
    files = sorted(file for pattern in TEXTS[kind] for file in ROOT.glob(pattern))
    assert files
    found = [f"{file.relative_to(ROOT)}:{claim}" for file in files for claim in claims(file.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "The first open implementation of the method.",
        "# a note\n# As no public\n    # code exists, all of it is ours.",
        "It is, in the paper's words, additive.",
        "It trains on several GPUs.",
        "state-of-the-art robustness",
    ],
)
def test_such_a_claim_is_found(text):
    assert len(claims(text)) == 1


def test_a_claim_is_named_with_its_line():
    assert claims("one\n\n# two: the only\n# implementation") == ["3: 'only implementation': nobody can know it"]
