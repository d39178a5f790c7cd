"""Tiny-ImageNet in its official folder: 200 classes, 64x64, 500 training and 50 validation images of each."""

import re
from collections import Counter
from pathlib import Path

import numpy as np

from ltat.data.folders import path_below, samples_below, text_lines
from ltat.data.image_files import Samples, files_dataset
from ltat.data.split import Dataset
from ltat.errors import LtatError

FOLDER = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"


def load_tiny_imagenet(data_dir: Path, download: bool = False, *, image_size: int | None = None) -> Dataset:
    """Read the official folder, or the folder it lies in; grey images become RGB.

    Classes are the WordNet ids of ``wnids.txt``, sorted, named by their first word in ``words.txt`` where that is
    there. The official validation set is the test set, as in the literature (the official test set has no labels).
    ``image_size``: see ``files_dataset``.

    Raises:
        LtatError: a missing or damaged part; classes of different sizes, which an archive unpacked in part has.
    """
    folder = data_dir if (data_dir / "wnids.txt").exists() else data_dir / FOLDER
    if not (folder / "wnids.txt").exists():
        fetched = "it cannot be downloaded from here; " if download else ""
        raise LtatError(f"there is no {folder}/wnids.txt; {fetched}fetch {URL} and unpack it into {data_dir}")
    ids = _ids(folder / "wnids.txt")
    over: Counter[str] = Counter()
    train = samples_below(folder / "train", ids, over)
    _check_complete(train, ids, folder)
    test = _validation(folder / "val", ids)
    return files_dataset("tiny-imagenet", train, test, _class_names(folder, ids), image_size, 3, over)


def _ids(path: Path) -> list[str]:
    ids = [line.strip() for line in text_lines(path) if line.strip()]
    wrong = next((name for name in ids if not re.fullmatch(r"n\d{8}", name)), None)
    if wrong is not None or not ids or len(set(ids)) < len(ids):
        what = f"holds {wrong!r}" if wrong is not None else "is empty or names a class twice"
        raise LtatError(f"{path} {what} and should list WordNet ids such as n01443537; unpack the archive again")
    return sorted(ids)


def _check_complete(train: Samples, ids: list[str], folder: Path) -> None:
    counts = np.bincount([label for _, label in train], minlength=len(ids))
    if counts.min() < counts.max():
        least = int(np.argmin(counts))
        raise LtatError(
            f"{folder}/train has {counts[least]} images of {ids[least]} and {counts.max()} of another class "
            "where the official classes are equally large; unpack the archive again"
        )


def _validation(folder: Path, ids: list[str]) -> Samples:
    annotations = folder / "val_annotations.txt"
    numbers = {name: number for number, name in enumerate(ids)}
    samples = []
    for number, line in enumerate(text_lines(annotations), start=1):
        file, *rest = line.split("\t")
        if not rest or rest[0] not in numbers:
            raise LtatError(f"{annotations}, line {number}: {line!r} names no known class; unpack the archive again")
        samples.append((path_below(folder / "images", file, f"{annotations}, line {number}"), numbers[rest[0]]))
    if not samples:
        raise LtatError(f"{annotations} is empty; unpack the archive again")
    return samples


def _class_names(folder: Path, ids: list[str]) -> list[str]:
    words = folder / "words.txt"
    if not words.exists():
        return ids
    found = dict(line.split("\t", 1) for line in text_lines(words) if "\t" in line)
    return [found.get(name, name).partition(",")[0] for name in ids]
