"""Labelled images: which are for training, which for validation, and how they are read."""

import numpy as np
import pytest
import torch
from PIL import Image

from eva_fast.evaluate.splits import open_splits


def write_image(path, colour, size=(20, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_classes(root, counts):
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i:03d}.png", (80 * c, i, 200 - 80 * c))


def names(split):
    return [split.source.name(n) for n in split.numbers]


def test_a_fixed_quarter_of_every_class_is_for_validation(tmp_path):
    make_classes(tmp_path, {"a": 40, "b": 8, "c": 2, "d": 1})
    train, val = open_splits(str(tmp_path))
    assert train.classes == val.classes == ["a", "b", "c", "d"]
    assert np.bincount(val.labels, minlength=4).tolist() == [10, 2, 1, 0]
    assert np.bincount(train.labels).tolist() == [30, 6, 1, 1]
    assert not set(names(train)) & set(names(val)) and len(train) + len(val) == 51
    again = open_splits(str(tmp_path))
    assert [names(s) for s in again] == [names(train), names(val)]


def test_train_and_val_folders_are_the_split(tmp_path):
    make_classes(tmp_path / "train", {"cat": 3, "dog": 2})
    make_classes(tmp_path / "val", {"dog": 4})
    train, val = open_splits(tmp_path)
    assert train.classes == ["cat", "dog"]
    assert list(train.labels) == [0, 0, 0, 1, 1] and list(val.labels) == [1] * 4
    make_classes(tmp_path / "val", {"emu": 1})
    with pytest.raises(ValueError, match=r"classes that train lacks: emu"):
        open_splits(tmp_path)


def test_the_builtin_split():
    train, val = open_splits("builtin")
    assert (len(train), len(val), len(train.classes)) == (1603, 551, 13)


def test_what_has_no_classes_is_refused(tmp_path):
    for i in range(4):
        write_image(tmp_path / "flat" / f"{i}.png", (i, 0, 0))
    with pytest.raises(ValueError, match="have no classes"):
        open_splits(str(tmp_path / "flat"))
    make_classes(tmp_path / "one", {"only": 5})
    with pytest.raises(ValueError, match=r"of one class \(only\)"):
        open_splits(str(tmp_path / "one"))
    make_classes(tmp_path / "single", {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="nothing is left for validation"):
        open_splits(str(tmp_path / "single"))
    with pytest.raises((ValueError, FileNotFoundError), match="nowhere"):
        open_splits(str(tmp_path / "nowhere"))


def test_images_are_the_centred_square_resized(tmp_path):
    g = np.random.default_rng(0)
    expected = []
    for name, (h, w) in {"a": (50, 81), "b": (64, 40)}.items():
        for i in range(4):
            image = Image.fromarray(g.integers(0, 256, (h, w, 3), dtype=np.uint8))
            (tmp_path / name).mkdir(exist_ok=True)
            image.save(tmp_path / name / f"{i}.png")
            side, left, top = min(h, w), (w - min(h, w)) // 2, (h - min(h, w)) // 2
            square = image.crop((left, top, left + side, top + side))
            square = np.asarray(square.resize((24, 24), Image.Resampling.BICUBIC))
            expected.append((f"{name}/{i}.png", torch.from_numpy(square.copy()).permute(2, 0, 1)))
    for split in open_splits(tmp_path):
        batches = list(split.batches(24, batch_size=4))
        images, labels = (torch.cat(x) for x in zip(*batches))
        assert images.dtype == torch.uint8 and len(images) == len(split)
        assert labels.tolist() == list(split.labels)
        for image, name in zip(images, names(split)):
            wanted = next(e for suffix, e in expected if name.endswith(suffix))
            assert (image.int() - wanted.int()).abs().float().mean() <= 2


def test_unreadable_images_are_left_out_and_named(tmp_path, caplog):
    make_classes(tmp_path, {"a": 8, "b": 8})
    (tmp_path / "a" / "000.png").write_bytes(b"broken")
    splits = open_splits(tmp_path)
    read = sum(len(images) for split in splits for images, _ in split.batches(16, 5))
    assert read == 15 and "000.png" in caplog.text
