"""Anyone's image files: folders of classes, or lists of files with labels."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from ltat.data.grouping import MAX_CLASSES
from ltat.data.image_files import Samples, files_dataset
from ltat.data.split import Dataset, listed
from ltat.errors import LtatError
from ltat.files import read_text

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's
_LEFT_BEHIND = (
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
    "Thumbs.db",
    "desktop.ini",
)
_LARGEST_LIST = 1 << 30  # bytes; a line for each image of ImageNet-21k is less


def load_image_folder(
    data_dir: Path, download: bool = False, *, image_size: int | None = None, channels: int | None = None
) -> Dataset:
    """Read ``train/CLASS/…`` and ``test/CLASS/…`` (or ``val/…``) as torchvision's ``ImageFolder`` does.

    Classes are the folders in ``train``, sorted by name; a class's images may lie in folders below it. Files of
    other endings, and what programs leave behind (``.ipynb_checkpoints``, ``__MACOSX``, ``.DS_Store``), are passed over
    and counted. ``image_size`` and ``channels``: see ``files_dataset``.

    Raises:
        LtatError: a missing folder, no classes or no images, a class in the test set that training does not have,
            or what ``files_dataset`` refuses.
    """
    refuse_download(download, "a folder of images", data_dir)
    train_folder = data_dir / "train"
    test_folder = next((data_dir / name for name in ("test", "val") if (data_dir / name).is_dir()), data_dir / "test")
    over: Counter[str] = Counter()
    names = class_folders(train_folder, over)
    unknown = sorted(set(class_folders(test_folder, over)) - set(names))
    if unknown:
        raise LtatError(f"{test_folder} has the class {unknown[0]!r}, {train_folder} has not; the classes must agree")
    return files_dataset(
        data_dir.absolute().name,
        samples_below(train_folder, names, over),
        samples_below(test_folder, names, over),
        names,
        image_size,
        channels,
        over,
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
        LtatError: a list is missing or empty, a line is malformed (by its number), a path leads out of
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


def class_folders(folder: Path, passed_over: Counter[str]) -> list[str]:
    """The folders in a folder, sorted by name, without those that programs leave behind, which are counted.

    Raises:
        LtatError: it is missing, holds no folder, or one whose name is not UTF-8.
    """
    try:
        found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise _no_classes(folder, error.strerror) from None
    names = [name for name in found if not _is_left_behind(name)]
    passed_over.update(f"folder {name}" for name in found if _is_left_behind(name))
    if not names:
        raise _no_classes(folder, "it holds no folder")
    for name in names:
        if os.fsencode(name) != name.encode(errors="replace"):
            raise LtatError(f"the folder {name!a} in {folder} has a name that is not UTF-8; rename it")
    return names


def _no_classes(folder: Path, reason: str | None) -> LtatError:
    return LtatError(f"{folder} gives no classes ({reason}); put each class's images into {folder}/CLASS")


def _is_left_behind(name: str) -> bool:
    """Whether a program left this folder or file behind; no class has such a name."""
    return name.startswith(".") or name in _LEFT_BEHIND


def samples_below(folder: Path, names: list[str], passed_over: Counter[str]) -> Samples:
    """Every image below ``folder/NAME`` with the number of the name, in torchvision's order.

    Other files, and those that programs leave behind, are counted in ``passed_over``.

    Raises:
        LtatError: there is none at all.
    """
    samples = [(file, number) for number, name in enumerate(names) for file in _images(folder / name, passed_over)]
    if not samples:
        raise LtatError(
            f"{folder} holds no image (of {' '.join(IMAGE_ENDINGS)}){_passed_over_note(passed_over)}; check the folder"
        )
    return samples


def _images(folder: Path, passed_over: Counter[str]) -> Iterator[str]:
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        passed_over.update(f"folder {name}" for name in folders if _is_left_behind(name))
        folders[:] = [name for name in folders if not _is_left_behind(name)]
        found.append((place, files))
    for place, files in sorted(found):
        for name in sorted(files):
            if _is_left_behind(name):
                passed_over["hidden or system file"] += 1
            elif not name.lower().endswith(IMAGE_ENDINGS):
                passed_over[f"file of {os.path.splitext(name)[1].lower() or 'no ending'}"] += 1
            else:
                yield os.path.join(place, name)


def _passed_over_note(passed_over: Mapping[str, int]) -> str:
    """What was passed over, for the end of a sentence."""
    return f" (passed over: {listed(passed_over)})" if passed_over else ""


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
        raise LtatError(f"{where}: {' '.join(fields)!r} is not an image path and a label; correct it")
    return fields[0].strip(), int(fields[1])


def path_below(root: Path, file: str, where: str) -> str:
    """The file of that relative name below ``root``; ``where`` names the line that lists it, for the error.

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
        LtatError: it cannot be read, or is not UTF-8.
    """
    try:
        return read_text(path.expanduser(), _LARGEST_LIST).splitlines()
    except OSError as error:
        raise LtatError(f"{path} cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise LtatError(f"{path} is not a text file; name another one") from error


def refuse_download(download: bool, what: str, data_dir: Path) -> None:
    """Refuse ``--download`` where there is no address to download from."""
    if download:
        raise LtatError(f"{what} cannot be downloaded; put it into {data_dir}")
