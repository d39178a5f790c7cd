"""A dataset that lies as .beton files in a folder."""

from pathlib import Path

from ltat.data.beton.format import Beton, read_beton
from ltat.data.beton.images import BetonImages
from ltat.data.split import Dataset, Split
from ltat.errors import LtatError


def load_beton(data_dir: Path, download: bool = False) -> Dataset:
    """Check ``train.beton`` and ``test.beton`` in a folder; the images are read when a loader requests them.

    ``download`` does not apply.

    Raises:
        LtatError: a missing, truncated, altered or foreign file, or two that do not belong together.
    """
    if download:
        raise LtatError(f".beton files cannot be downloaded; write them into {data_dir} with ltat data prepare")
    train, test = (_part(data_dir, part) for part in ("train", "test"))
    names = train.sidecar.class_names
    if test.sidecar.class_names != names:
        raise LtatError(f"{train.path} and {test.path} have different class names; write them from one dataset")
    return Dataset(train.sidecar.dataset, _split(train), _split(test), names)


def _part(data_dir: Path, part: str) -> Beton:
    beton = read_beton(data_dir / f"{part}.beton")
    if beton.sidecar.part != part:
        raise LtatError(f"{beton.path} was written as {beton.sidecar.part}.beton; rename it to that")
    return beton


def _split(beton: Beton) -> Split:
    return Split(
        BetonImages.of(beton), beton.labels, len(beton.sidecar.class_names), beton.indices, beton.sidecar.class_names
    )
