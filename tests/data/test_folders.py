"""Image files: the same images as torchvision's ImageFolder, nothing decoded too early, every bad file by its name."""

import os
import pickle
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from ltat.data import image_files, index_hash, load_dataset
from ltat.errors import LtatError
from tests.data.pictures import image_folder, picture


@pytest.fixture
def decoded(monkeypatch):
    """The files decoded so far."""
    paths, real = [], image_files.ImageFiles._decode
    monkeypatch.setattr(
        image_files.ImageFiles, "_decode", lambda self, path: (paths.append(Path(path)), real(self, path))[1]
    )
    return paths


# --- what is read


@pytest.mark.parametrize("ending", ["png", "JPEG", "bmp", "webp"])
def test_images_labels_and_order_are_torchvisions(tmp_path, ending):
    folder = image_folder(tmp_path / "mine", ending)
    picture(folder / f"train/bee/more/deeper.{ending}", seed=77)
    (folder / "train/bee/notes.txt").write_text("not an image")
    data = load_dataset("imagefolder", folder)
    for split, name in ((data.train, "train"), (data.test, "test")):
        theirs = ImageFolder(folder / name)
        assert data.class_names == tuple(theirs.classes)
        assert split.labels.tolist() == theirs.targets
        assert split.indices.tolist() == list(range(len(theirs)))
        np.testing.assert_array_equal(split.images[:], np.stack([np.asarray(image) for image, _ in theirs]))
    assert (data.name, data.image_shape, len(data.train)) == ("mine", (6, 8, 3), 10)


def test_val_is_the_test_set_where_there_is_no_test(tmp_path):
    assert len(load_dataset("imagefolder", image_folder(tmp_path, test="val")).test) == 6
    picture(tmp_path / "test/bee/0.png")
    assert len(load_dataset("imagefolder", tmp_path).test) == 1  # test, not val and not both


def test_a_read_gives_the_positions_asked_for_with_repeats(tmp_path):
    images = load_dataset("imagefolder", image_folder(tmp_path, per_class=50)).train.images
    all_of_them = images[:]
    for positions in (np.array([7, 3, 3, 149, 0]), np.array([2]), np.arange(150)[::-1], np.array([], dtype=np.int64)):
        found = images.read(positions)
        np.testing.assert_array_equal(found, all_of_them[positions])
        assert found.dtype == np.uint8 and found.flags.c_contiguous


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path, decoded):
    data = load_dataset("imagefolder", image_folder(tmp_path, per_class=20), imbalance_ratio=10)
    part = data.train.subset(np.array([3, 0, 3]))
    assert decoded == [] and data.train.counts.tolist() == [20, 6, 2]
    part.images[:]
    order = [tmp_path / f"train/ant/{name}" for name in sorted(os.listdir(tmp_path / "train/ant"))]
    assert sorted(decoded) == sorted(order[data.train.indices[i]] for i in (3, 0, 3))


def test_a_long_tailed_part_keeps_its_place_in_the_whole(tmp_path):
    folder = image_folder(tmp_path, per_class=20)
    whole, part = (
        load_dataset("imagefolder", folder).train,
        load_dataset("imagefolder", folder, imbalance_ratio=5).train,
    )
    np.testing.assert_array_equal(part.images[:], whole.images[:][part.indices])
    assert index_hash(part.indices) != index_hash(np.sort(part.indices))  # drawn, not cut off


def test_a_store_can_be_sent_to_a_worker_and_leaves_no_thread(tmp_path):
    images = load_dataset("imagefolder", image_folder(tmp_path)).train.images
    threads = threading.active_count()
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(images))[:], images[:])
    assert threading.active_count() == threads
    assert images.nbytes == 9 * 6 * 8 * 3


def test_image_size_scales_the_shorter_side_and_takes_the_centre(tmp_path):
    folder = image_folder(tmp_path)
    for path in folder.rglob("*.png"):
        image = np.zeros((20, 60, 3), np.uint8)  # the centre square is red, all else blue
        image[..., 2] = 255
        image[:, 20:40] = (255, 0, 0)
        Image.fromarray(image).save(path)
    original = picture(folder / "train/ant/0.png", (20, 20), seed=5).astype(float)
    images = load_dataset("imagefolder", folder, image_size=10).train.images[:]
    assert images.shape == (9, 10, 10, 3)
    assert (images[1:, :, 1:-1] == [255, 0, 0]).all()
    # Halving with antialiasing: weights 1 3 3 1 over the four pixels about each new one, in both directions.
    weights = np.array([1, 3, 3, 1]) / 8
    for row, column in ((1, 1), (4, 7), (8, 2)):
        patch = original[2 * row - 1 : 2 * row + 3, 2 * column - 1 : 2 * column + 3]
        expected = np.einsum("i,j,ijc->c", weights, weights, patch)
        assert np.abs(images[0, row, column] - expected).max() <= 1


def test_image_size_of_the_files_changes_no_pixel(tmp_path):
    folder = image_folder(tmp_path)
    for path in folder.rglob("*.png"):
        picture(path, (8, 8))
    as_it_is, scaled = load_dataset("imagefolder", folder), load_dataset("imagefolder", folder, image_size=8)
    np.testing.assert_array_equal(as_it_is.train.images[:], scaled.train.images[:])


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("1", 1), ("RGB", 3), ("P", 3)])
def test_a_set_of_one_mode_needs_no_setting(tmp_path, mode, channels):
    folder = image_folder(tmp_path)
    for path in folder.rglob("*.png"):
        picture(path, mode=mode)
    images = load_dataset("imagefolder", folder).train.images
    expected = np.asarray(Image.open(folder / "train/ant/0.png").convert({1: "L", 3: "RGB"}[channels]))
    assert images.shape[-1] == channels
    np.testing.assert_array_equal(images[:1].reshape(expected.shape), expected)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_channels_among_rgb_are_named_and_converted_on_request(tmp_path, mode):
    folder = image_folder(tmp_path, "jpg")
    picture(folder / "test/bee/1.jpg", mode=mode)
    with pytest.raises(LtatError, match=rf"test/bee/1\.jpg is of mode {mode} .*ant/0\.jpg of mode RGB.*--channels 3"):
        load_dataset("imagefolder", folder)
    images = load_dataset("imagefolder", folder, channels=3).test.images[:]
    np.testing.assert_array_equal(images[3], np.asarray(Image.open(folder / "test/bee/1.jpg").convert("RGB")))
    assert load_dataset("imagefolder", folder, channels=1).test.images[:].shape == (6, 6, 8, 1)


# --- what is refused


def write_png(path, width, height, depth, colour, packed_rows):
    """A file of Pillow's no matter what: of a depth it cannot write, or of more pixels than there is memory."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", packed_rows), chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def write_png16(path):
    """A 16-bit RGB file, which Pillow reads but cannot write."""
    write_png(path, 8, 6, 16, 2, zlib.compress(b"".join(b"\0" + bytes(8 * 6) for _ in range(6))))


def blank_png(path, width, height):
    """A grey file of any size, written without the memory it takes to read it."""
    pack = zlib.compressobj()
    write_png(
        path, width, height, 8, 0, b"".join(pack.compress(bytes(1 + width)) for _ in range(height)) + pack.flush()
    )


def device(path):
    path.unlink()
    path.symlink_to("/dev/null")


BAD_FILES = {
    "a device": (device, "it is a pipe or a device, no file"),
    "text": (lambda path: path.write_text("hello"), "cannot be read as an image .it is none of JPEG"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:20]), "cannot be read as an image"),
    "a program": (lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 6\n"), "none of JPEG"),
    "alpha": (lambda path: picture(path, mode="RGBA"), "has transparency .mode RGBA"),
    "16 bits grey": (lambda path: picture(path, mode="I;16"), "more than 8 bits per channel"),
    "integers": (lambda path: Image.new("I", (8, 6)).save(path, "TIFF"), "more than 8 bits per channel"),
    "floats": (lambda path: Image.new("F", (8, 6)).save(path, "TIFF"), "more than 8 bits per channel"),
    "16 bits colour": (write_png16, "more than 8 bits per channel"),
    "gone": (lambda path: (path.unlink(), path.symlink_to("nowhere")), "No such file or directory"),
    "a bomb": (lambda path: path.write_bytes(b"P6 60000 60000 255\n"), "exceeds limit"),
}


@pytest.mark.parametrize("bad", BAD_FILES)
@pytest.mark.parametrize("settings", [{}, {"image_size": 4, "channels": 3}])
def test_a_bad_file_is_named_before_training(tmp_path, bad, settings):
    path = image_folder(tmp_path) / "train/bee/b.png"
    picture(path)
    spoil, fragment = BAD_FILES[bad]
    spoil(path)
    with pytest.raises(LtatError, match=fragment) as caught:
        load_dataset("imagefolder", tmp_path, **settings)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_two_files_of_different_sizes_are_named_with_the_remedy(tmp_path):
    picture(image_folder(tmp_path) / "test/bee/1.png", (9, 6))
    with pytest.raises(LtatError, match=r"train/ant/0\.png is 6x8 and .*test/bee/1\.png is 6x9; .*--image-size N"):
        load_dataset("imagefolder", tmp_path)
    assert load_dataset("imagefolder", tmp_path, image_size=6).test.images[:].shape == (6, 6, 6, 3)


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_a_truncated_image_is_named_when_it_is_read(tmp_path, ending):
    folder = image_folder(tmp_path, ending)
    path = folder / f"train/bee/1.{ending}"
    picture(path, (64, 64))
    for other in folder.rglob(f"*.{ending}"):
        picture(other, (64, 64))
    path.write_bytes(path.read_bytes()[:-400])
    data = load_dataset("imagefolder", folder)
    data.train.images[:4]
    with pytest.raises(LtatError, match=rf"train/bee/1\.{ending} cannot be read as an image"):
        data.train.images[:]


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp"])
def test_whatever_bit_of_a_file_is_wrong_there_is_an_image_or_one_sentence(tmp_path, ending):
    folder = image_folder(tmp_path, ending)
    path, rng = folder / f"train/bee/1.{ending}", np.random.default_rng(0)
    intact, images = path.read_bytes(), load_dataset("imagefolder", folder).train.images
    before, refused = images[4:5], 0
    for position in rng.integers(0, len(intact), 200):
        broken = bytearray(intact)
        broken[position] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        try:
            image_files.read_headers([str(path)])
            found = images[4:5]
        except LtatError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:
            assert found.shape == before.shape
            assert ending != "png" or (found == before).all()  # its checksums leave no room for other pixels
    assert refused > 5 or ending == "bmp"


def test_giants_are_scaled_one_at_a_time_and_refused_as_they_are(tmp_path, monkeypatch):
    for part in ("train/a", "train/b", "test/a"):
        blank_png(tmp_path / part / "0.png", 5000, 4000)
    with pytest.raises(
        LtatError, match="4000x5000, more than 4096 pixels on a side; scale them down with --image-size"
    ):
        load_dataset("imagefolder", tmp_path)
    images = load_dataset("imagefolder", tmp_path, image_size=8).train.images
    at_once = []
    scale = image_files._centre_square
    monkeypatch.setattr(
        image_files, "_centre_square", lambda *given: (at_once.append(image_files._GIANTS.locked()), scale(*given))[1]
    )
    assert images[:].shape == (2, 8, 8, 1) and at_once == [True, True]


@pytest.mark.parametrize(
    ("size", "fragment"), [((1, 2000), "too long and narrow to be scaled to 64"), ((2000, 1000), "exceeds limit")]
)
def test_a_file_whose_scaling_would_fill_the_memory_is_refused(tmp_path, monkeypatch, size, fragment):
    monkeypatch.setattr(image_files, "_MOST_PIXELS", 1_000_000)
    for part in ("train/a", "train/b", "test/a"):
        blank_png(tmp_path / part / "0.png", *((8, 8) if part != "train/b" else size))
    with pytest.raises(LtatError, match=fragment):
        load_dataset("imagefolder", tmp_path, image_size=64)


def test_a_file_that_changes_its_size_is_named(tmp_path):
    data = load_dataset("imagefolder", image_folder(tmp_path))
    picture(tmp_path / "train/ant/1.png", (6, 8))
    with pytest.raises(LtatError, match=r"train/ant/1\.png is 8x6 now and was 6x8"):
        data.train.images[:]


def test_folders_that_are_no_set_are_reported(tmp_path):
    def refused(fragment, **settings):
        with pytest.raises(LtatError, match=fragment) as caught:
            load_dataset("imagefolder", tmp_path, **settings)
        assert "\n" not in str(caught.value)

    refused(r"train gives no classes \(No such file")
    (tmp_path / "train").mkdir()
    refused(r"train gives no classes \(it holds no folder\)")
    (tmp_path / "train/ant").mkdir()
    refused(r"test gives no classes \(No such file")
    (tmp_path / "test/ant").mkdir(parents=True)
    refused(r"train holds no image \(of \.jpg")
    image_folder(tmp_path)
    refused("cannot be downloaded", download=True)
    refused("image_size=0", image_size=0)
    refused(r"image_size=100000 is not from 1 to 4096 pixels", image_size=100_000)
    refused("4 channels", channels=4)
    refused("takes no train_list", train_list="x")


def test_a_class_whose_name_is_no_text_is_reported(tmp_path):
    image_folder(tmp_path)
    picture(tmp_path / "train" / os.fsdecode(b"b\xff") / "0.png")
    with pytest.raises(LtatError, match=r"the folder 'b\\udcff' in .* is not UTF-8; rename it"):
        load_dataset("imagefolder", tmp_path)


def test_a_class_may_lack_test_images_but_not_training_images(tmp_path):
    image_folder(tmp_path)
    for path in (tmp_path / "test/bee").iterdir():
        path.unlink()
    (tmp_path / "test/bee").rmdir()
    assert load_dataset("imagefolder", tmp_path).test.counts.tolist() == [2, 0, 2]
    picture(tmp_path / "test/dog/0.png")
    with pytest.raises(LtatError, match="test has the class 'dog'"):
        load_dataset("imagefolder", tmp_path)
    (tmp_path / "train/dog").mkdir()
    with pytest.raises(LtatError, match=r"class 3 \(dog\) has no training image"):
        load_dataset("imagefolder", tmp_path)


@pytest.mark.parametrize("name", ["digits", "cifar10", "npz", "tiny-imagenet", "medmnist"])
def test_settings_of_image_files_are_refused_elsewhere(tmp_path, name):
    with pytest.raises(LtatError, match=f"dataset '{name}' takes no channels .here 3.; leave it out"):
        load_dataset(name, tmp_path, channels=3)


# --- lists


def write_lists(root, train=None, test=None):
    """An imagefolder's images named by lists, the training list backwards."""
    folder = image_folder(root)
    for part, lines in (("train", train), ("test", test)):
        paths = sorted((folder / part).rglob("*.png"), reverse=part == "train")
        usual = [f"{path.relative_to(folder)} {'abc'.index(path.parent.name[0])}" for path in paths]
        (folder / f"{part}.txt").write_text("\n".join(usual if lines is None else lines) + "\n")
    return {"train_list": folder / "train.txt", "test_list": folder / "test.txt"}


def test_an_index_list_gives_its_images_in_its_order(tmp_path):
    data = load_dataset("imagelist", tmp_path, **write_lists(tmp_path))
    by_folder = load_dataset("imagefolder", tmp_path)
    np.testing.assert_array_equal(data.train.images[:], by_folder.train.images[:][::-1])
    np.testing.assert_array_equal(data.train.labels, by_folder.train.labels[::-1])
    np.testing.assert_array_equal(data.test.images[:], by_folder.test.images[:])
    assert data.class_names == ("0", "1", "2") and data.train.counts.tolist() == [3, 3, 3]


def test_an_index_list_may_begin_with_a_byte_order_mark(tmp_path):
    lists = write_lists(tmp_path)
    lists["train_list"].write_bytes(b"\xef\xbb\xbf" + lists["train_list"].read_bytes())
    marked = load_dataset("imagelist", tmp_path, **lists)
    assert len(marked.train) > 0


def test_an_index_list_may_have_spaces_tabs_and_empty_lines(tmp_path):
    picture(tmp_path / "more/a name.png")
    lists = write_lists(tmp_path, train=["more/a name.png 0", "", "train/bee/0.png\t1 ", "  ", "train/cat/0.png  2"])
    assert load_dataset("imagelist", tmp_path, **lists).train.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("lines", "fragment"),
    [
        (["train/ant/0.png 0", "train/ant/1.png"], r"train\.txt, line 2: 'train/ant/1.png' is not an image path and a"),
        (["train/ant/0.png 0", "train/ant/1.png -1"], "line 2"),
        (["train/ant/0.png 1.5"], "line 1"),
        (["7"], "line 1"),
        (["/etc/passwd 0"], r"line 1: '/etc/passwd' leads out of"),
        (["train/../../secret.png 0"], "line 1: .* leads out of"),
        (["train/ant/9.png 0", "train/cat/0.png 2"], r"train/ant/9\.png cannot be read as an image \(No such file"),
        (["train/ant/0.png 0", "train/bee/0.png 2"], r"class 1 \(1\) has no training image"),
        (["train/ant/0.png 0", "train/bee/0.png 1"], r"test\.txt, line 5: label 2 is outside 0\.\.1"),
        (["train/ant/0.png 12345678"], r"label 12345678 is outside 0\.\.999999"),
        (["train/ant/0.png " + "1" * 5000], "line 1: .* is not an image path and a label"),
        ([], "names no image"),
    ],
)
def test_a_bad_index_list_is_reported_by_its_line(tmp_path, lines, fragment):
    lists = write_lists(tmp_path, train=lines)
    with pytest.raises(LtatError, match=fragment) as caught:
        load_dataset("imagelist", tmp_path, **lists)
    assert "\n" not in str(caught.value)


def test_an_index_list_that_is_missing_or_no_text_is_reported(tmp_path):
    lists = write_lists(tmp_path)
    with pytest.raises(LtatError, match="--train-list FILE and --test-list FILE"):
        load_dataset("imagelist", tmp_path, train_list=lists["train_list"])
    with pytest.raises(LtatError, match=r"nowhere\.txt cannot be read \(No such file"):
        load_dataset("imagelist", tmp_path, train_list="nowhere.txt", test_list=lists["test_list"])
    lists["test_list"].unlink()
    lists["test_list"].symlink_to("/dev/null")  # a device or a pipe: some are never at their end
    with pytest.raises(LtatError, match=r"test\.txt cannot be read \(it is a pipe or a device"):
        load_dataset("imagelist", tmp_path, **lists)
    lists["test_list"].unlink()
    lists["test_list"].write_bytes(b"\xff\xfe\x00")
    with pytest.raises(LtatError, match=r"test\.txt is not a text file"):
        load_dataset("imagelist", tmp_path, **lists)


def test_what_programs_leave_behind_is_no_class_and_what_is_dropped_is_counted(tmp_path):
    folder = image_folder(tmp_path / "images")
    expected = load_dataset("imagefolder", folder)
    assert not expected.passed_over
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", "lost+found"):
        picture(folder / "train" / name / "0.png")
    picture(folder / "train/ant/.ipynb_checkpoints/0-checkpoint.png")
    picture(folder / "train/ant/._0.png")
    for file in ("train/bee/.DS_Store", "train/bee/Thumbs.db", "train/ant/a.gif", "test/cat/b.GIF", "test/cat/notes"):
        (folder / file).write_bytes(b"")
    found = load_dataset("imagefolder", folder)
    assert found.class_names == expected.class_names == ("ant", "bee", "cat")
    np.testing.assert_array_equal(found.train.counts, expected.train.counts)
    np.testing.assert_array_equal(found.train.images[:], expected.train.images[:])
    assert dict(found.passed_over) == {
        "folder .ipynb_checkpoints": 2,
        "folder __MACOSX": 1,
        "folder @eaDir": 1,
        "folder lost+found": 1,
        "hidden or system file": 3,
        "file of .gif": 2,
        "file of no ending": 1,
    }


def test_an_empty_class_tells_what_was_not_read(tmp_path):
    folder = image_folder(tmp_path / "images")
    for file in (folder / "train/bee").iterdir():
        file.rename(file.with_suffix(".gif"))
    with pytest.raises(LtatError, match=r"bee\) has no training image \(passed over: 3 × file of \.gif\)"):
        load_dataset("imagefolder", folder)
