"""Labelled images: which are for training, which for validation."""

import numpy as np
import pytest
from PIL import Image

from eva_fast.evaluation.splits import known_labels, open_labelled, split


def write_image(path, colour, size=(20, 14)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def make_classes(root, counts):
    for c, (name, count) in enumerate(counts.items()):
        for i in range(count):
            write_image(root / name / f"{i:03d}.png", (80 * c, i, 200 - 80 * c))


def open_splits(data):
    return split(known_labels(open_labelled(data)), data)


def names(part, source):
    return [source.name(n) for n in part.numbers]


def test_a_fixed_quarter_of_every_class_is_for_validation(tmp_path):
    make_classes(tmp_path, {"a": 40, "b": 8, "c": 2, "d": 1})
    train, val = open_splits(str(tmp_path))
    assert train.classes == val.classes == ["a", "b", "c", "d"]
    assert np.bincount(val.labels, minlength=4).tolist() == [10, 2, 1, 0]
    assert np.bincount(train.labels).tolist() == [30, 6, 1, 1]
    (source,) = open_labelled(tmp_path)
    assert [source.label(n) for n in val.numbers] == [val.classes[i] for i in val.labels]
    assert not set(train.numbers) & set(val.numbers) and len(train) + len(val) == 51
    again = open_splits(str(tmp_path))
    assert [names(s, source) for s in again] == [names(train, source), names(val, source)]


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
