import hashlib
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from ltat import memory
from ltat.data import DATASETS, cifar, index_hash, load_dataset, longtail_counts, npz
from ltat.data.cifar import CifarSource, load_cifar, plain_unpickle
from ltat.data.npz import write_npz as write_split
from ltat.errors import LtatError

SHARED = Path(__file__).parents[3] / "shared/data"
RNG = np.random.default_rng(0)


def test_digits_test_set_never_changes():
    data = load_dataset("digits")
    assert data.test.counts.tolist() == [40] * 10
    assert index_hash(data.test.indices) == "20990cc67f77d275eee4f49c41bbdfa26d29c83d2332731975ff596438c606eb"
    assert sorted([*data.train.indices, *data.test.indices]) == list(range(1797))


def test_digits_pixels_are_the_rescaled_originals():
    from sklearn.datasets import load_digits

    original, data = load_digits(), load_dataset("digits")
    assert data.image_shape == (8, 8, 1)
    for split in (data.train, data.test):
        for image, label, index in zip(split.images[:50], split.labels, split.indices, strict=False):
            assert label == original.target[index]
            expected = [[round(v * 255 / 16) for v in row] for row in original.images[index]]
            assert image[..., 0].tolist() == expected


def test_digits_long_tail_is_lowered_to_what_class_0_has():
    data = load_dataset("digits", imbalance_ratio=20)
    assert data.train.counts.tolist() == longtail_counts(138, 10, 20).tolist()
    assert len(data.test) == 400
    full = load_dataset("digits").train
    where = np.searchsorted(full.indices, data.train.indices)
    np.testing.assert_array_equal(full.images[where], data.train.images)


def test_ratio_may_be_text_from_the_command_line():
    assert len(load_dataset("digits", imbalance_ratio="20").train) == 464


def test_subset_seed_changes_the_images_but_not_the_counts():
    one, other = (load_dataset("digits", imbalance_ratio=20, subset_seed=s).train for s in (0, 1))
    assert one.counts.tolist() == other.counts.tolist()
    assert index_hash(one.indices) != index_hash(other.indices)


@pytest.mark.parametrize(
    ("name", "keywords", "fragment"),
    [
        ("mnist", {}, "unknown dataset 'mnist'; choose one of digits, cifar10, cifar100"),
        ("cifar10", {}, "--data-dir"),
        ("npz", {}, "--data-dir"),
        ("digits", {"imbalance_ratio": "strong"}, "'strong'"),
        ("digits", {"imbalance_ratio": 0.1}, "ratio 0.1"),
        ("digits", {"imbalance_ratio": 1000}, "class 7 would keep 0 of 138"),
        ("digits", {"imbalance_ratio": 2, "imbalance": "linear"}, "'linear'"),
        ("digits", {"imbalance_ratio": 2, "class_order": "size"}, "'size'"),
        ("digits", {"imbalance_ratio": 2, "split_file": "x.npy"}, "exclude each other"),
        ("digits", {"split_file": "nowhere.npy"}, "nowhere.npy"),
    ],
)
def test_wrong_use_is_refused_by_value(name, keywords, fragment):
    with pytest.raises(LtatError, match=fragment):
        load_dataset(name, **keywords)


# --- split files


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_split_file_gives_exactly_its_positions(tmp_path, suffix):
    chosen = RNG.permutation(1397)[:300].astype(np.int32)
    path = tmp_path / f"split.{suffix}"
    {"npy": np.save, "npz": lambda p, a: np.savez(p, indices=a)}[suffix](path, chosen)
    data = load_dataset("digits", split_file=path)
    np.testing.assert_array_equal(data.train.indices, load_dataset("digits").train.indices[chosen])


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ([0, 1, 1], "image 1 more than once"),
        ([0, 1397], r"split\.npy: index 1397"),
        ([0, 1], "has no training image"),
        ([0.5], "float64"),
    ],
)
def test_bad_split_file_is_refused(tmp_path, content, fragment):
    np.save(tmp_path / "split.npy", np.array(content))
    with pytest.raises(LtatError, match=fragment):
        load_dataset("digits", split_file=tmp_path / "split.npy")


# --- npz


def write_npz(folder, *, train=None, test=None):
    def arrays(n):
        return {"images": RNG.integers(0, 256, (n, 6, 5, 3), dtype=np.uint8), "labels": np.arange(n) % 3}

    folder.mkdir(exist_ok=True)
    for name, n, changes in (("train", 30, train), ("test", 12, test)):
        content = {key: value for key, value in (arrays(n) | (changes or {})).items() if value is not None}
        np.savez_compressed(folder / f"{name}.npz", **content)
    return folder


def test_npz_round_trip(tmp_path):
    index, names = RNG.permutation(1000)[:30], np.array(["cat", "dog", "owl"])
    labels = (np.arange(30) % 3).astype(np.uint8)
    data = load_dataset(
        "npz", write_npz(tmp_path / "mine", train={"index": index, "class_names": names, "labels": labels})
    )
    stored = np.load(tmp_path / "mine/train.npz")
    np.testing.assert_array_equal(data.train.images, stored["images"])
    np.testing.assert_array_equal(data.train.indices, index)
    assert data.train.labels.dtype == np.int64
    assert data.class_names == ("cat", "dog", "owl")
    assert data.test.indices.tolist() == list(range(12))


def test_npz_without_names_counts_its_classes(tmp_path):
    data = load_dataset("npz", write_npz(tmp_path / "mine"))
    assert (data.name, data.class_names, data.num_classes) == ("mine", ("0", "1", "2"), 3)


def test_npz_images_may_lie_in_any_order_in_memory(tmp_path):
    images = np.asfortranarray(RNG.integers(0, 256, (30, 6, 5, 3), dtype=np.uint8))
    folder = write_npz(tmp_path, train={"images": images})
    np.testing.assert_array_equal(load_dataset("npz", folder).train.images, images)


def test_npz_files_are_written_beyond_the_old_limit_of_zip(tmp_path, monkeypatch):
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)
    data = load_dataset("digits")
    for name, split in {"train": data.train, "test": data.test}.items():
        write_split(split, tmp_path / f"{name}.npz", data.class_names)
    np.testing.assert_array_equal(load_dataset("npz", tmp_path).train.images, data.train.images)


def test_npz_subset_follows_the_stored_index(tmp_path):
    index = RNG.permutation(1000)[:30]
    folder = write_npz(tmp_path / "mine", train={"index": index})
    subset = load_dataset("npz", folder, imbalance_ratio=5).train
    full = load_dataset("npz", folder).train
    where = [index.tolist().index(i) for i in subset.indices]
    np.testing.assert_array_equal(full.images[where], subset.images)


def test_npz_may_lack_a_class_in_the_test_set_only(tmp_path):
    assert load_dataset("npz", write_npz(tmp_path, test={"labels": np.zeros(12, int)})).test.counts.tolist() == [
        12,
        0,
        0,
    ]
    with pytest.raises(LtatError, match=r"class 1 \(1\) has no training image"):
        load_dataset("npz", write_npz(tmp_path, train={"labels": np.arange(30) % 2 * 2}))


NANS = np.full((30, 6, 5, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("train", "fragment"),
    [
        ({"images": None}, "no 'images'"),
        ({"labels": None}, "no 'labels'"),
        ({"images": NANS}, "float32 with NaN"),
        ({"images": np.zeros((30, 6, 5, 3), np.int64)}, "int64"),
        ({"images": np.zeros((30, 6, 5), np.uint8)}, r"\(30, 6, 5\)"),
        ({"images": np.zeros((29, 6, 5, 3), np.uint8)}, "29 images"),
        ({"images": np.zeros((30, 6, 5, 1), np.uint8)}, r"\(6, 5, 1\) but test images are \(6, 5, 3\)"),
        ({"images": np.array([object()])}, "plain NumPy arrays"),
        ({"images": np.uint8(3)}, "shape"),
        ({"labels": np.arange(30) / 2}, "labels in .* are float64"),
        ({"labels": np.arange(30) % 3 - 1}, "label -1 at position 0"),
        ({"labels": np.full((30, 1), 0)}, r"\(30, 1\)"),
        ({"labels": np.full(30, 2**63, np.uint64)}, "label 9223372036854775808"),
        ({"labels": np.full(30, 2**62)}, "label 4611686018427387904"),
        ({"labels": np.arange(30) % 2}, "label 2 at position 2"),
        ({"index": np.arange(29)}, "index in .* of shape"),
        ({"index": np.arange(30) - 4}, "index in .* holds -4"),
        ({"index": np.full(30, 2**63, np.uint64)}, "index in .* holds 9223372036854775808"),
        ({"class_names": np.array([1, 2, 3])}, "class_names"),
        ({"class_names": np.array(["a", "b"])}, r"label 2 at position 2 is outside 0\.\.1"),
    ],
)
def test_bad_npz_content_is_refused_in_one_sentence(tmp_path, train, fragment):
    folder = write_npz(tmp_path, train=train)
    with pytest.raises(LtatError, match=fragment) as caught:
        load_dataset("npz", folder)
    assert "\n" not in str(caught.value)


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}.get(how, bytes(data)))


@pytest.mark.parametrize("how", ["truncated", "flipped", "empty", "text"])
def test_damaged_npz_is_refused(tmp_path, how):
    folder = write_npz(tmp_path)
    damage(folder / "train.npz", how)
    with pytest.raises(LtatError, match=r"train\.npz cannot be read") as caught:
        load_dataset("npz", folder)
    assert "\n" not in str(caught.value)


def test_every_single_byte_of_an_npz_may_be_wrong(tmp_path):
    # Whatever byte is hit: the same arrays (unused header fields) or one clear error, never another exception.
    folder = write_npz(tmp_path)
    path = folder / "train.npz"
    intact, whole = path.read_bytes(), load_dataset("npz", folder)
    for position in RNG.permutation(len(intact))[:300]:
        broken = bytearray(intact)
        broken[position] ^= 1 << RNG.integers(8)
        path.write_bytes(broken)
        try:
            found = load_dataset("npz", folder)
        except LtatError:
            continue
        np.testing.assert_array_equal(found.train.images, whole.train.images)
        np.testing.assert_array_equal(found.train.labels, whole.train.labels)


def test_a_small_file_that_unpacks_to_more_than_the_memory_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(
        tmp_path / "train.npz", images=np.zeros((1000, 32, 32, 3), np.uint8), labels=np.zeros(1000, int)
    )
    assert (tmp_path / "train.npz").stat().st_size < 100_000
    monkeypatch.setattr(memory, "free_memory", lambda: 1_000_000)
    monkeypatch.setattr(npz.np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(LtatError, match=r"train\.npz takes .* GB of memory, of which"):
        load_dataset("npz", tmp_path)


def test_missing_npz_folder_is_named(tmp_path):
    with pytest.raises(LtatError, match=r"nowhere/train\.npz cannot be read .No such file"):
        load_dataset("npz", tmp_path / "nowhere")
    with pytest.raises(LtatError, match="cannot be downloaded"):
        load_dataset("npz", tmp_path, download=True)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("writer", ["npz", "raw"])
def test_pickle_in_an_npz_never_runs(tmp_path, monkeypatch, writer):
    monkeypatch.chdir(tmp_path)
    folder = write_npz(tmp_path / "mine", train={"images": np.array([Bomb()] * 30)})
    if writer == "raw":
        (folder / "train.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LtatError, match="plain NumPy arrays"):
        load_dataset("npz", folder)
    assert not (tmp_path / "exploded").exists()


# --- CIFAR, on files made here in the published layout


def batch(n, labels_key, protocol=2):
    return pickle.dumps(
        {"data": RNG.integers(0, 256, (n, 3072), dtype=np.uint8), labels_key: [i % 3 for i in range(n)]}, protocol
    )


def fake_cifar(tmp_path):
    folder = tmp_path / "fake-batches"
    folder.mkdir()
    contents = {"one": batch(9, "labels"), "two": batch(6, "labels"), "probe": batch(6, "labels")}
    contents["meta"] = pickle.dumps({"label_names": ["a", "b", "c"]}, 2)
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    sums = {name: hashlib.md5(data).hexdigest() for name, data in contents.items()}
    return CifarSource(
        name="fake",
        folder=folder.name,
        url="http://127.0.0.1:9/fake.tar.gz",
        archive=("fake.tar.gz", "0" * 32),
        train=(("one", sums["one"]), ("two", sums["two"])),
        test=(("probe", sums["probe"]),),
        meta=("meta", sums["meta"]),
        labels_key="labels",
        names_key="label_names",
    )


def test_cifar_layout_is_planes_of_rows(tmp_path):
    source = fake_cifar(tmp_path)
    data = load_cifar(lambda: source, tmp_path)
    raw = pickle.loads((tmp_path / "fake-batches/two").read_bytes())["data"]
    for channel, row, column in ((0, 0, 0), (1, 2, 3), (2, 31, 30)):
        assert data.train.images[9 + 4, row, column, channel] == raw[4, channel * 1024 + row * 32 + column]
    assert data.train.labels.tolist() == [i % 3 for i in range(9)] + [i % 3 for i in range(6)]
    assert data.class_names == ("a", "b", "c")
    assert len(data.test) == 6


@pytest.mark.parametrize("file", ["one", "probe", "meta"])
def test_altered_cifar_file_is_refused_before_it_is_read(tmp_path, monkeypatch, file):
    source = fake_cifar(tmp_path)
    path = tmp_path / "fake-batches" / file
    monkeypatch.chdir(tmp_path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(LtatError, match=f"{file} has MD5"):
        load_cifar(lambda: source, tmp_path)
    path.unlink()
    with pytest.raises(LtatError, match=f"{file} cannot be read"):
        load_cifar(lambda: source, tmp_path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_plain_unpickler_never_runs_code(tmp_path, monkeypatch, protocol):
    # The second wall, should a checksum ever be forged.
    monkeypatch.chdir(tmp_path)
    for content in (Bomb(), {"data": Bomb()}, np.array([Bomb()]), subprocess.Popen, eval):
        with pytest.raises(LtatError, match="not a plain CIFAR file"):
            plain_unpickle(pickle.dumps(content, protocol), Path("file"))
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_plain_unpickler_reads_what_the_files_hold(protocol):
    content = {"data": np.arange(6, dtype=np.uint8).reshape(2, 3), "labels": [1, 2], "names": ["x"], "raw": b"\xff"}
    found = plain_unpickle(pickle.dumps(content, protocol), Path("file"))
    np.testing.assert_array_equal(found.pop("data"), content.pop("data"))
    assert found == content


def test_codec_cannot_be_abused_by_the_plain_unpickler():
    attack = b"c_codecs\nencode\n(Vabc\nVrot13\ntR."
    with pytest.raises(LtatError, match="rot13"):
        plain_unpickle(attack, Path("file"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_folder_and_its_remedy_are_named(tmp_path, name):
    folder = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name]
    with pytest.raises(LtatError, match=rf"{tmp_path}/{folder}; pass --download .* npz"):
        load_dataset(name, tmp_path)


def test_failed_download_leaves_nothing_behind(tmp_path):
    source = fake_cifar(tmp_path)
    (place := tmp_path / "new").mkdir()
    for folder in (place, tmp_path / "newer"):
        with pytest.raises(LtatError, match=r"could not be downloaded from http://127\.0\.0\.1:9") as caught:
            load_cifar(lambda: source, folder, download=True)
        assert "go online" in str(caught.value)
    assert not list(place.iterdir())
    assert not (tmp_path / "newer").exists()


def test_download_puts_the_whole_folder_in_place_at_once(tmp_path, monkeypatch):
    source = fake_cifar(tmp_path)

    def fetch(url, root, **_):
        assert url == source.url
        (tmp_path / source.folder).rename(Path(root) / source.folder)

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", fetch)
    data = load_cifar(lambda: source, tmp_path / "new", download=True)
    assert len(data.train) == 15
    assert [path.name for path in (tmp_path / "new").iterdir()] == [source.folder]


def test_published_checksums_are_used(tmp_path):
    for source, files in ((cifar.cifar10_source(), 5), (cifar.cifar100_source(), 1)):
        assert len(source.train) == files
        assert all(len(md5) == 32 for _, md5 in (*source.train, *source.test, source.meta, source.archive))


# --- the real long-tailed packs


@pytest.mark.skipif(not SHARED.exists(), reason="the real long-tailed packs are not here")
def test_real_cifar10_pack_loads_as_the_published_subset(tmp_path):
    command = [sys.executable, str(SHARED / "unpack.py"), "cifar10", "--imbalance-ratio", "50", "--out", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True)
    data = load_dataset("npz", tmp_path)
    assert index_hash(data.train.indices) == "d7edcfaf02772bee1e2310a33be8b6c46232f043641158348b9de3ec731e26ac"
    assert data.train.counts.tolist() == longtail_counts(5000, 10, 50).tolist()
    assert data.test.counts.tolist() == [1000] * 10
    full_labels = np.load(SHARED / "cifar_train_labels.npz")["cifar10"]
    np.testing.assert_array_equal(full_labels[data.train.indices], data.train.labels)


def test_every_dataset_says_what_it_is_here_and_in_the_documentation():
    table = (Path(__file__).parents[2] / "docs/data.md").read_text()
    for name, spec in DATASETS.items():
        assert spec.summary and spec.pad >= 0
        assert f"\n| `{name}` | " in table


@pytest.mark.parametrize("content", ["text", "objects", "archive"])
def test_a_file_that_is_no_array_is_reported_without_advice_to_run_it(tmp_path, content):
    path = tmp_path / "train.npz"
    if content == "text":
        path.write_text("images,labels")
    elif content == "objects":
        np.savez(path, images=np.array([{}], dtype=object), labels=np.zeros(1, int))
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("images", "not an array")
            archive.writestr("labels", "nor this")
    with pytest.raises(LtatError, match=r"train\.npz") as caught:
        load_dataset("npz", tmp_path)
    assert "pickle" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["npz", "cifar10", "tiny-imagenet", "medmnist", "imagefolder"])
def test_a_folder_that_may_not_be_searched_is_one_sentence(tmp_path, monkeypatch, name):
    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    for method in ("exists", "is_dir", "is_file", "stat"):
        monkeypatch.setattr(Path, method, denied)
    monkeypatch.setattr("os.stat", denied)
    monkeypatch.setattr("os.scandir", denied)
    with pytest.raises(LtatError, match="Permission denied") as caught:
        load_dataset(name, tmp_path)
    assert "\n" not in str(caught.value)
