"""Sets two recordings against each other."""

import fnmatch
import json
from collections import Counter
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

SAME_MACHINE = ("torch", "cpu")  # on which every bit depends
SHOWN = 3  # names of a part that differ


@dataclass
class Difference:
    """How two sets of named values differ; what has a new name, or is new, is no difference."""

    changed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.changed or self.missing)


def same(one: Any, other: Any) -> bool:
    """Equal, and NaN is equal to NaN."""
    return one == other or json.dumps(one) == json.dumps(other)


def difference(before: dict[str, Any], after: dict[str, Any]) -> Difference:
    """Values are compared under their names; one that is missing may stand under another name."""
    added = [name for name in after if name not in before]
    found = Difference([name for name in before if name in after and not same(before[name], after[name])])
    for name in (name for name in before if name not in after):
        fitting = [other for other in added if same(before[name], after[other])]
        if fitting:
            new = max(fitting, key=lambda other: likeness(name, other))
            found.renamed[name] = new
            added.remove(new)
        else:
            found.missing.append(name)
    found.added = added
    return found


def likeness(one: str, other: str) -> tuple[bool, float]:
    """How likely one dotted name became another."""
    return one.rpartition(".")[2] == other.rpartition(".")[2], SequenceMatcher(None, one, other).ratio()


def compare(before: Path, after: Path, expected: list[str], only: set[str] | None = None) -> bool:
    """Print what differs between two recordings; whether no case differs but those expected.

    Args:
        before, after: the folders.
        expected: patterns of the cases that may differ.
        only: the names of the cases to compare; all of ``before`` if None.
    """
    warn_of_machines(before, after)
    old, new = read(before), read(after)
    names = [name for name in old if only is None or name in only]
    differing, notes = [], Counter[str]()
    for name in names:
        lines = case_lines(old[name], new.get(name), notes)
        allowed = any(fnmatch.fnmatch(name, pattern) for pattern in expected)
        for line in lines:
            print(f"{name}{' (expected)' if allowed else ''}  {line}")
        differing += [(name, allowed)] if lines else []
    for note, count in notes.items():
        print(f"no difference: {note} ({count} times)")
    print(f"{len(names) - len(differing)} of {len(names)} cases bit-equal")
    return all(allowed for _, allowed in differing)


def case_lines(old: dict[str, Any], new: dict[str, Any] | None, notes: Counter[str]) -> list[str]:
    """A line for each part of a case that differs."""
    if new is None:
        return ["was not recorded"]
    if old["failed"] or new["failed"]:
        return [f"failed: {old['failed'] or 'not'} | {new['failed'] or 'not'}"]
    lines = []
    for part, values in old["parts"].items():
        if part not in new["parts"]:
            lines.append(f"{part}: missing")
            continue
        found = difference(values, new["parts"][part])
        kind = part.partition(" ")[0]
        notes.update(f"{kind} {one} is now {other}" for one, other in found.renamed.items())
        notes.update(f"{kind} {one} is new" for one in found.added)
        lines += [f"{part}: {described(found, values, new['parts'][part])}"] if found else []
    notes.update(f"{part} is new" for part in new["parts"] if part not in old["parts"])
    return lines


def described(found: Difference, old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first names that differ, with both values, and how many more."""
    each = [f"{name} {brief(old[name])} | {brief(new[name])}" for name in found.changed]
    each += [f"{name} {brief(old[name])} | missing" for name in found.missing]
    more = f"; {len(each) - SHOWN} more of {len(old)}" if len(each) > SHOWN else ""
    return "; ".join(each[:SHOWN]) + more


def brief(value: Any) -> str:
    text = json.dumps(value).strip('"')
    return text[:12] if len(text) == 64 else text[:60]


def warn_of_machines(before: Path, after: Path) -> None:
    one, other = (json.loads((folder / "about.json").read_text()) for folder in (before, after))
    for name in SAME_MACHINE:
        if one[name] != other[name]:
            print(f"warning: recorded with {name} {one[name]} and {other[name]}; the bits depend on it")


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a folder, by case."""
    records = [json.loads(path.read_text()) for path in sorted((folder / "cases").glob("*.json"))]
    return {each["name"]: each for each in records}
