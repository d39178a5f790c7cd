"""Long-tailed subsets, exactly as the published work draws them.

Class c of C keeps n_c = floor(n_max · μ^{c/(C-1)}) images, μ = 1 / imbalance ratio, in label order
(LDAM-DRW, Cao et al. 2019, and every long-tailed adversarial training paper since).
"""

import bisect
from collections.abc import Callable

import numpy as np

from ltat import native
from ltat.data.grouping import images_by_class, resolve_labels
from ltat.errors import LtatError
from ltat.seeding import numpy_generator
from ltat.units import check_ratio


def _exponential(rank: int, num_classes: int) -> float:
    return rank / (num_classes - 1)


def _step(rank: int, num_classes: int) -> float:
    return 0.0 if rank < (num_classes + 1) // 2 else 1.0


# Exponent of μ for the class of the given rank (0 = largest).
PROFILES: dict[str, Callable[[int, int], float]] = {"exp": _exponential, "step": _step}
CLASS_ORDERS = ("label", "permuted")


def longtail_counts(n_max: int, num_classes: int, ratio: float, kind: str = "exp") -> np.ndarray:
    """Images per class of a long-tailed set: n_c = floor(n_max · μ^{e_c}), μ = 1/ratio.

    Args:
        n_max: images of the largest class, at least 1.
        num_classes: C, at least 2.
        ratio: n_max / n_min, at least 1.
        kind: "exp" (e_c = c/(C-1)) or "step" (e_c = 1 for the last floor(C/2) classes, else 0).

    Returns:
        int64 [C], from the largest to the smallest class.

    Raises:
        LtatError: an argument out of range, or a class that would keep no image (log n_c enters the losses).
    """
    _check_profile(n_max, num_classes, ratio, kind)
    host = native.host()
    count = profile_counts if host is None else host.longtail_counts
    counts = np.asarray(count(n_max, num_classes, float(ratio), kind), dtype=np.int64)
    if not counts.all():
        empty = int(np.flatnonzero(counts == 0)[0])
        raise LtatError(
            f"class {empty} would keep 0 of {n_max} images at imbalance ratio {ratio:g}; "
            + ("choose 1" if n_max == 1 else f"choose a ratio below {n_max}")
        )
    return counts


def profile_counts(n_max: int, num_classes: int, ratio: float, kind: str) -> np.ndarray:
    """The formula of ``longtail_counts`` without its checks; specification of the native helper."""
    exponent = PROFILES[kind]
    mu = 1 / ratio
    # Python floats, one at a time: NumPy's vectorised power may round differently from the C library.
    return np.array([int(n_max * mu ** exponent(c, num_classes)) for c in range(num_classes)], dtype=np.int64)


def longtail_indices(
    labels: np.ndarray,
    ratio: float,
    seed: int = 0,
    *,
    num_classes: int | None = None,
    kind: str = "exp",
    class_order: str = "label",
) -> np.ndarray:
    """Positions of a long-tailed subset, class by class in the reference's order.

    NumPy's legacy generator is seeded once; for each class in ascending order its positions are shuffled and
    the first n_c kept. With seed 0 on the full CIFAR training sets these are the published subsets.
    n_max = floor(N / C), lowered to the largest value for which every class has enough images.

    Args:
        labels: integers [N].
        ratio: imbalance ratio, at least 1.
        seed: of the subset, 0..2**32-1; independent of the training seed.
        num_classes: C; the largest label + 1 if None.
        kind: profile, "exp" or "step".
        class_order: "label" (class 0 is the head) or "permuted" (the seed draws which class is large).

    Returns:
        int64 [Σ n_c], positions in ``labels``.

    Raises:
        LtatError: as ``longtail_counts``, an empty class, or an unknown name.
    """
    labels, num_classes = resolve_labels(labels, num_classes)
    by_class = images_by_class(labels, num_classes)
    available = np.array([len(own) for own in by_class])
    if not available.all():
        raise LtatError(f"class {int(np.argmin(available))} has no image; every class needs at least one")
    rank = _ranks(class_order, num_classes, seed)
    n_max = _largest_head(available, rank, ratio, kind)
    counts = longtail_counts(n_max, num_classes, ratio, kind)[rank]

    generator = np.random.RandomState(_check_seed(seed))
    kept = []
    for own, count in zip(by_class, counts, strict=True):
        shuffled = own.copy()
        generator.shuffle(shuffled)
        kept.append(shuffled[:count])
    return np.concatenate(kept)


def _largest_head(available: np.ndarray, rank: np.ndarray, ratio: float, kind: str) -> int:
    num_classes = len(available)
    limit = int(available.sum()) // num_classes
    _check_profile(max(limit, 1), num_classes, ratio, kind)

    def too_large(n_max: int) -> bool:
        return bool((profile_counts(n_max, num_classes, float(ratio), kind)[rank] > available).any())

    # n_c grows with n_max, so the first n_max that asks too much of a class can be found by bisection.
    return bisect.bisect_left(range(1, limit + 1), True, key=too_large)


def _ranks(class_order: str, num_classes: int, seed: int) -> np.ndarray:
    if class_order not in CLASS_ORDERS:
        raise LtatError(f"unknown class order {class_order!r}; choose one of {', '.join(CLASS_ORDERS)}")
    if class_order == "label":
        return np.arange(num_classes)
    return numpy_generator(_check_seed(seed), "class-order").permutation(num_classes)


def _check_seed(seed: int) -> int:
    if not 0 <= seed < 2**32:
        raise LtatError(f"subset seed {seed} is outside 0..{2**32 - 1}; choose a seed in that range")
    return seed


def _check_profile(n_max: int, num_classes: int, ratio: float, kind: str) -> None:
    if kind not in PROFILES:
        raise LtatError(f"unknown imbalance profile {kind!r}; choose one of {', '.join(PROFILES)}")
    if num_classes < 2:
        raise LtatError(f"{num_classes} classes cannot be imbalanced; a long-tailed set needs at least 2")
    if n_max < 1:
        raise LtatError(f"a largest class of {n_max} images is impossible; give at least 1")
    check_ratio("imbalance ratio", ratio)
