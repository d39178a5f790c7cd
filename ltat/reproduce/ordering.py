"""Whether the order of the rows in print is that of our runs.

For every two rows whose published figures are no matter of doubt and differ, our difference is looked at:

- it has the published sign: the pair agrees;
- it is zero or has the other sign, and its interval contains zero: the pair is open;
- its interval is wholly on the other side: the pair contradicts the paper.

The order holds if all pairs agree, it is contradicted if one pair contradicts it, and it is open otherwise. Kendall's
tau is (pairs of the published sign - pairs of the other sign) / pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from ltat.reproduce.intervals import Interval, Verdicts, difference_interval

HOLDS, OPEN, CONTRADICTED = "holds", "open", "contradicted"


@dataclass(frozen=True)
class Entry:
    """A row of the comparison.

    Attributes:
        label: its name.
        published: the published figure in percent.
        seeds: our verdicts by training seed.
    """

    label: str
    published: float
    seeds: Mapping[int, Verdicts]


@dataclass(frozen=True)
class Pair:
    """Two rows, the better one in print first.

    Attributes:
        above: the row that is better in print.
        below: the other.
        published: by how much, in percent.
        ours: the same difference in our runs.
    """

    above: str
    below: str
    published: float
    ours: Interval

    @property
    def agrees(self) -> bool:
        """Whether our difference has the published sign."""
        return self.ours.value > 0

    @property
    def contradicts(self) -> bool:
        """Whether our interval is wholly on the other side."""
        return self.ours.high < 0


@dataclass(frozen=True)
class Ordering:
    """The comparison of all pairs; see the module."""

    pairs: Sequence[Pair]

    @property
    def verdict(self) -> str:
        """:data:`HOLDS`, :data:`OPEN` or :data:`CONTRADICTED`."""
        if any(pair.contradicts for pair in self.pairs):
            return CONTRADICTED
        return HOLDS if all(pair.agrees for pair in self.pairs) else OPEN

    @property
    def tau(self) -> float:
        """Kendall's tau, from -1 to 1."""
        signs = [(pair.ours.value > 0) - (pair.ours.value < 0) for pair in self.pairs]
        return sum(signs) / len(signs)


def ordering(entries: Sequence[Entry]) -> Ordering | None:
    """Compare the rows; ``None`` where no two can be compared."""
    pairs = [pair for one, other in combinations(entries, 2) if (pair := compared(one, other)) is not None]
    return Ordering(pairs) if pairs else None


def compared(one: Entry, other: Entry) -> Pair | None:
    """Two rows by the seeds that both have; ``None`` if there is none, or the published figures are equal."""
    if one.published == other.published:
        return None
    above, below = (one, other) if one.published > other.published else (other, one)
    seeds = [seed for seed in above.seeds if seed in below.seeds]
    if not seeds:
        return None
    ours = difference_interval([above.seeds[s] for s in seeds], [below.seeds[s] for s in seeds])
    return Pair(above.label, below.label, above.published - below.published, ours)
