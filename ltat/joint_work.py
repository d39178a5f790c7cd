"""Work that several ranks do in parts: every rank learns what all parts gave, and a failure of one is that of all.

The parts must not depend on who does them. Of N ranks, rank r does the parts r, r + N, r + 2 N, ...
"""

from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from uuid import uuid4

from ltat.errors import LtatError
from ltat.ranks import RankEnded, Ranks, Tally

Batch = TypeVar("Batch", bound=Sized)
Found = TypeVar("Found")


class FailedElsewhere(LtatError):
    """Another rank has failed, and all of them know it; the message is that of its error."""


class Stopped(Exception):
    """Another rank has failed, and has yet to say why."""


@dataclass(frozen=True)
class Failure:
    """What a rank sends that has nothing else to send: the reason, or None where it stopped because of another."""

    reason: str | None


def over_ranks(
    ranks: Ranks,
    stage: str,
    batches: Sequence[Batch],
    work: Callable[[int, Batch], Found],
    on_progress: Callable[[str, int, int], None],
) -> list[Found]:
    """What ``work`` gives for every batch, in order, on all ranks; each batch is worked on by one of them.

    Args:
        ranks: those that share the batches.
        stage: its name, for the progress.
        batches: the same on all ranks.
        work: called with the number of a batch and the batch; its result is sent to the other ranks.
        on_progress: called as (stage, images that all ranks have done, images of the stage).

    Raises:
        FailedElsewhere: another rank has failed, here or before it came here.
        Stopped: another rank has failed; :func:`failing_together` has the reason.
    """
    images = sum(len(batch) for batch in batches)
    name = exchanged(ranks, uuid4().hex)[0]
    done, failures = Tally(ranks, f"{name} done"), Tally(ranks, f"{name} failures")
    own: list[Found] = []
    try:
        for number in ranks.turns(len(batches)):
            if failures.add(0):
                raise Stopped
            own.append(work(number, batches[number]))
            on_progress(stage, done.add(len(batches[number])), images)
    except Exception:
        failures.add(1)  # the others then do not finish the stage in vain
        raise
    found = exchanged(ranks, own)
    if ranks.size > 1:
        on_progress(stage, images, images)
    return [found[number % ranks.size][number // ranks.size] for number in range(len(batches))]


def exchanged(ranks: Ranks, part: Found) -> list[Found]:
    """The parts of all ranks, in their order.

    Raises:
        FailedElsewhere: a rank has failed instead.
    """
    found = ranks.gathered(part)
    require_none_failed(found)
    return found


def require_none_failed(found: Sequence[object]) -> None:
    """Raises: FailedElsewhere if one of the parts is a failure."""
    reasons = [part.reason for part in found if isinstance(part, Failure) and part.reason is not None]
    if reasons:
        raise FailedElsewhere(reasons[0])


@contextmanager
def failing_together(ranks: Ranks) -> Iterator[None]:
    """Inside, an error of one rank ends the block on all of them; of several errors, with that of the first rank.

    The ranks may tell each other something inside by :func:`exchanged` and :func:`over_ranks` alone.

    Raises:
        FailedElsewhere: another rank has failed.
    """
    try:
        yield
        exchanged(ranks, None)
    except (FailedElsewhere, RankEnded):
        raise
    except Exception as error:
        found = ranks.gathered(Failure(None if isinstance(error, Stopped) else reason_of(error)))
        first = next(part for part in found if isinstance(part, Failure) and part.reason is not None)
        if found.index(first) == ranks.rank:
            raise
        raise FailedElsewhere(str(first.reason)) from error


def reason_of(error: Exception) -> str:
    """An error in one line."""
    return str(error).partition("\n")[0] or type(error).__name__
