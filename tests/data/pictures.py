"""Small image files for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(path: Path, size: tuple[int, int] = (8, 6), mode: str = "RGB", seed: int = 0) -> np.ndarray:
    """Write noise of (width, height) in Pillow's mode; the format follows the ending. The pixels as Pillow has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    image = image.quantize(16) if mode == "P" else image.convert(mode)
    image.save(path)
    return np.asarray(image)


def image_folder(root: Path, ending: str = "png", test: str = "test", per_class: int = 3) -> Path:
    """Three classes of per_class training images and two test images each."""
    for part, n in (("train", per_class), (test, 2)):
        for c, name in enumerate(("ant", "bee", "cat")):
            for i in range(n):
                picture(root / part / name / f"{i}.{ending}", seed=10 * c + i + (100 if part == test else 0))
    return root


def tiny_imagenet(root: Path, classes: int = 3, per_class: int = 2) -> Path:
    """The official layout in small: wnids.txt out of order, as the official one is."""
    folder = root / "tiny-imagenet-200"
    ids = [f"n0{1443537 + 17 * c}" for c in range(classes)]
    for c, name in enumerate(ids):
        for i in range(per_class):
            mode = "L" if i == 0 else "RGB"
            picture(folder / f"train/{name}/images/{name}_{i}.JPEG", (64, 64), mode, seed=10 * c + i)
        (folder / f"train/{name}/{name}_boxes.txt").write_text(f"{name}_0.JPEG\t0\t10\t63\t58\n")
        picture(folder / f"val/images/val_{c}.JPEG", (64, 64), seed=1000 + c)
    lines = [f"val_{c}.JPEG\t{ids[-1 - c]}\t0\t32\t44\t62\n" for c in range(classes)]
    (folder / "val/val_annotations.txt").write_text("".join(lines))
    (folder / "wnids.txt").write_text("\n".join(reversed(ids)) + "\n")
    (folder / "words.txt").write_text("n00000001\tentity\n" + f"{ids[0]}\tgoldfish, Carassius auratus\n")
    return folder
