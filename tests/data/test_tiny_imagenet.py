"""Tiny-ImageNet's official folder, made here in small."""

import shutil

import numpy as np
import pytest
from PIL import Image

from ltat.data import load_dataset
from ltat.errors import LtatError
from tests.data.pictures import picture, tiny_imagenet


def test_classes_are_the_sorted_ids_and_val_is_the_test_set(tmp_path):
    folder = tiny_imagenet(tmp_path)
    data = load_dataset("tiny-imagenet", tmp_path)
    ids = sorted((folder / "wnids.txt").read_text().split())
    assert data.class_names == ("goldfish", ids[1], ids[2]) and data.image_shape == (64, 64, 3)
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2] and data.test.labels.tolist() == [2, 1, 0]
    expected = [Image.open(folder / f"train/{i}/images/{i}_{k}.JPEG").convert("RGB") for i in ids for k in (0, 1)]
    np.testing.assert_array_equal(data.train.images[:], np.stack(list(map(np.asarray, expected))))
    for place in range(3):
        theirs = np.asarray(Image.open(folder / f"val/images/val_{place}.JPEG"))
        np.testing.assert_array_equal(data.test.images[place : place + 1][0], theirs)


def test_the_folder_itself_or_the_one_it_lies_in_may_be_named(tmp_path):
    folder = tiny_imagenet(tmp_path)
    for place in (tmp_path, folder):
        assert len(load_dataset("tiny-imagenet", place, image_size=32).train) == 6


def test_without_words_the_classes_have_their_ids(tmp_path):
    folder = tiny_imagenet(tmp_path)
    (folder / "words.txt").unlink()
    assert all(name.startswith("n0144") for name in load_dataset("tiny-imagenet", folder).class_names)


def remove_val(folder):
    shutil.rmtree(folder / "val")


def remove_class(folder):
    shutil.rmtree(folder / "train/n01443537")


DAMAGE = {
    "no val": (remove_val, r"val_annotations\.txt cannot be read \(No such file"),
    "no class": (remove_class, "has 0 images of n01443537 and 2 of another class"),
    "half a class": (lambda f: (f / "train/n01443554/images/n01443554_1.JPEG").unlink(), "has 1 images of n01443554"),
    "no training": (lambda f: shutil.rmtree(f / "train"), "train holds no image"),
    "val image": (lambda f: (f / "val/images/val_1.JPEG").unlink(), r"val_1\.JPEG cannot be read .*No such file"),
    "ids": (lambda f: (f / "wnids.txt").write_text("../val\n"), r"wnids\.txt holds '\.\./val'"),
    "ids twice": (lambda f: (f / "wnids.txt").write_text("n01443537\n" * 2), "names a class twice"),
    "no ids": (lambda f: (f / "wnids.txt").write_text("\n"), "is empty"),
    "binary ids": (lambda f: (f / "wnids.txt").write_bytes(b"\xff"), "not a text file"),
    "binary words": (lambda f: (f / "words.txt").write_bytes(b"\xff"), "not a text file"),
    "annotation": (lambda f: (f / "val/val_annotations.txt").write_text("a\tn99999999\n"), "line 1: .*no known class"),
    "cut annotation": (lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG"), "line 1"),
    "no annotation": (lambda f: (f / "val/val_annotations.txt").write_text(""), r"val_annotations\.txt is empty"),
    "elsewhere": (lambda f: (f / "val/val_annotations.txt").write_text("../../x\tn01443537\n"), "leads out of"),
    "size": (lambda f: picture(f / "val/images/val_0.JPEG", (63, 64)), r"val_0\.JPEG is 64x63"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_missing_or_damaged_part_is_reported_in_one_sentence(tmp_path, what):
    folder = tiny_imagenet(tmp_path)
    damage, fragment = DAMAGE[what]
    damage(folder)
    with pytest.raises(LtatError, match=fragment) as caught:
        load_dataset("tiny-imagenet", tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("download", [False, True])
def test_a_missing_folder_and_where_to_get_it_are_named(tmp_path, download):
    with pytest.raises(LtatError, match=r"no .*tiny-imagenet-200/wnids\.txt; .*fetch http.*zip and unpack it into"):
        load_dataset("tiny-imagenet", tmp_path, download=download)
