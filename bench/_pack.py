"""Images of an npz folder for a narrow way: every one as lossless WebP, half the size of the compressed array."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bench._parts import PACKED
from ltat.data.npz import load_array
from ltat.errors import LtatError
from ltat.files import appearing_together

LENGTHS = "webp_lengths"


def pack(data_dir: Path, target: Path) -> None:
    """Write the ``train.npz`` and ``test.npz`` of a folder, images uint8 [N, H, W, 3], into ``target``, packed.

    Raises:
        LtatError: a file that cannot be read, or images of another kind.
    """
    for name, packed in PACKED.items():
        file = data_dir / f"{name}.npz"
        arrays = load_array(file)
        images = arrays.pop("images", None)
        if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise LtatError(f"{file} holds no images uint8 [N, H, W, 3]; write it as docs/data.md says")
        encoded = [as_webp(image) for image in images]
        lengths = np.array([len(one) for one in encoded], dtype=np.int64)
        joined = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        np.savez(target / packed, images=joined, **{LENGTHS: lengths}, **arrays)


def unpack(source: Path, data_dir: Path) -> None:
    """Write what :func:`pack` has written to ``source`` as an npz folder again, which is there as a whole or not.

    Raises:
        LtatError: a file that cannot be read, or the place cannot be written.
    """
    with appearing_together(data_dir) as folder:
        for name, packed in PACKED.items():
            arrays = load_array(source / packed)
            ends = np.cumsum(arrays.pop(LENGTHS))
            encoded = np.split(arrays.pop("images"), ends[:-1])
            np.savez(folder / f"{name}.npz", images=np.stack([from_webp(one) for one in encoded]), **arrays)


def as_webp(image: np.ndarray) -> bytes:
    """An image uint8 [H, W, 3], to the last bit."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "WEBP", lossless=True, quality=100)
    return buffer.getvalue()


def from_webp(encoded: np.ndarray) -> np.ndarray:
    """The image again."""
    return np.asarray(Image.open(io.BytesIO(encoded.tobytes()), formats=["WEBP"]).convert("RGB"))
