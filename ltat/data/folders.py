"""Anyone's image files: folders of classes, or lists of files with labels."""

import os
import re
from pathlib import Path, PurePosixPath

from ltat.data.grouping import MAX_CLASSES
from ltat.data.image_files import Samples, files_dataset
from ltat.data.split import Dataset
from ltat.errors import LtatError
from ltat.files import read_text

_LARGEST_LIST = 1 << 30  # bytes; a line for each image of ImageNet-21k is less


def load_image_folder(
    data_dir: Path, download: bool = False, *, image_size: int | None = None, channels: int | None = None
) -> Dataset:
    """Read ``train/CLASS/…`` and ``test/CLASS/…`` (or ``val/…``) as torchvision's ``ImageFolder`` does.

    Classes are the folders in ``train``, sorted by name; a class's images may lie in folders below it. Files of
    other endings are passed over. ``image_size`` and ``channels``: see ``files_dataset``.

    Raises:
        LtatError: a missing folder, no classes or no images, a class in the test set that training does not have,
            or what ``files_dataset`` refuses.
    """
    refuse_download(download, "a folder of images", data_dir)
    train_folder = data_dir / "train"
    test_folder = next((data_dir / name for name in ("test", "val") if (data_dir / name).is_dir()), data_dir / "test")
    names = class_folders(train_folder)
    unknown = sorted(set(class_folders(test_folder)) - set(names))
    if unknown:
        raise LtatError(f"{test_folder} has the class {unknown[0]!r}, {train_folder} has not; the classes must agree")
    return files_dataset(
        data_dir.absolute().name,
        samples_below(train_folder, names),
        samples_below(test_folder, names),
        names,
        image_size,
        channels,
    )


def load_image_list(
    data_dir: Path,
    download: bool = False,
    *,
    train_list: str | Path | None = None,
    test_list: str | Path | None = None,
    image_size: int | None = None,
    channels: int | None = None,
) -> Dataset:
    """Read images named in text files, in the layout of ImageNet-LT, Places-LT and iNaturalist.

    A line is ``PATH LABEL``: a path below ``data_dir`` and a number from 0; empty lines are passed over. There are
    as many classes as the largest training label says, named by their numbers. ``image_size`` and ``channels``: see
    ``files_dataset``.

    Raises:
        LtatError: a list that is missing or empty, a line that is none (by its number), a path that leads out of
            ``data_dir``, a label out of range, or what ``files_dataset`` refuses.
    """
    refuse_download(download, "a list of images", data_dir)
    if train_list is None or test_list is None:
        raise LtatError("dataset 'imagelist' reads two lists; name them with --train-list FILE and --test-list FILE")
    train = read_list(Path(train_list), data_dir)
    num_classes = max(label for _, label in train) + 1
    test = read_list(Path(test_list), data_dir, num_classes)
    names = [str(label) for label in range(num_classes)]
    return files_dataset(data_dir.absolute().name, train, test, names, image_size, channels)


def class_folders(folder: Path) -> list[str]:
    """The folders in a folder, sorted by name.

    Raises:
        LtatError: it is missing, holds no folder, or one whose name is no text.
    """
    from torchvision.datasets.folder import find_classes  # noqa: PLC0415  (seconds of import time)

    try:
        names: list[str] = find_classes(folder)[0]
    except OSError as error:
        reason = error.strerror or "it holds no folder"
        raise LtatError(f"{folder} gives no classes ({reason}); put each class's images into {folder}/CLASS") from None
    for name in names:
        if os.fsencode(name) != name.encode(errors="replace"):
            raise LtatError(f"the folder {name!a} in {folder} has a name that is not UTF-8; rename it")
    return names


def samples_below(folder: Path, names: list[str]) -> Samples:
    """Every image below ``folder/NAME`` with the number of the name, in torchvision's order.

    Raises:
        LtatError: there is none at all.
    """
    from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset  # noqa: PLC0415

    numbers = {name: number for number, name in enumerate(names)}
    samples: Samples = make_dataset(folder, numbers, extensions=IMG_EXTENSIONS, allow_empty=True)
    if not samples:
        raise LtatError(f"{folder} holds no image (of {' '.join(IMG_EXTENSIONS)}); check the folder")
    return samples


def read_list(path: Path, root: Path, num_classes: int = MAX_CLASSES) -> Samples:
    """The files below ``root`` that a list names, with their labels in [0, num_classes)."""
    samples = []
    for number, line in enumerate(text_lines(path), start=1):
        fields = line.rsplit(maxsplit=1)
        if fields:
            file, label = _file_and_label(fields, f"{path}, line {number}")
            if label >= num_classes:
                raise LtatError(f"{path}, line {number}: label {label} is outside 0..{num_classes - 1}; correct it")
            samples.append((path_below(root, file, f"{path}, line {number}"), label))
    if not samples:
        raise LtatError(f"{path} names no image; write lines of PATH LABEL")
    return samples


def _file_and_label(fields: list[str], where: str) -> tuple[str, int]:
    if len(fields) != 2 or not re.fullmatch("[0-9]{1,9}", fields[1]):
        raise LtatError(f"{where}: {' '.join(fields)!r} is no image path and label; correct it")
    return fields[0].strip(), int(fields[1])


def path_below(root: Path, file: str, where: str) -> str:
    """The file of that relative name below ``root``; ``where`` says who asks for it.

    Raises:
        LtatError: the name leads out of ``root``.
    """
    parts = PurePosixPath(file)
    if parts.is_absolute() or ".." in parts.parts:
        raise LtatError(f"{where}: {file!r} leads out of {root}; give a path below it")
    return f"{root}/{file}"


def text_lines(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        LtatError: it cannot be read, or is no text.
    """
    try:
        return read_text(path.expanduser(), _LARGEST_LIST).splitlines()
    except OSError as error:
        raise LtatError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise LtatError(f"{path} is no text file; name another one") from error


def refuse_download(download: bool, what: str, data_dir: Path) -> None:
    """Say that there is no address to fetch this from, if it is asked for."""
    if download:
        raise LtatError(f"{what} cannot be downloaded; put it into {data_dir}")
