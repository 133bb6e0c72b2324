"""Datasets of anyone's own: every form of an item, labels by name and by number, mistakes."""

import numpy as np
import pytest
import torch
from PIL import Image

from eva_fast.data import open_source
from tests.data.pictures import encoded


class Pictures(torch.utils.data.Dataset):
    def __init__(self, make, count=4):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        return self.make(number)


@pytest.mark.parametrize(
    "make",
    [
        lambda i: Image.new("L", (9, 7), i),
        lambda i: (Image.new("RGB", (9, 7)), i),
        lambda i: encoded(i),
        lambda i: {"not": "seen"} if i < 0 else torch.full((3, 7, 9), i, dtype=torch.uint8),
        lambda i: [np.full((7, 9, 3), i, dtype=np.uint8), "a label"],
        lambda i: {"image": np.full((7, 9, 3), i, dtype=np.uint8), "label": None},
        lambda i: {"image": bytearray(encoded(i)), "boxes": np.zeros((0, 4))},
    ],
    ids=["pil", "pil_and_label", "bytes", "tensor", "array_and_label", "dict", "dict_of_bytes"],
)
def test_map_style_datasets(make):
    source = open_source(Pictures(make))
    assert len(source) == 4
    item = source.read(2)
    assert isinstance(item, (bytes, Image.Image, torch.Tensor))
    if isinstance(item, torch.Tensor):
        assert item.shape == (3, 7, 9) and (item == 2).all()


def test_items_carry_all_that_a_dict_has():
    boxes = np.array([[1, 2, 3, 4.0]])
    source = open_source(Pictures(lambda i: {"image": encoded(i), "boxes": boxes, "name": "x"}))
    item = source.item(1)
    assert item.image == encoded(1) and item["boxes"] is boxes and item["name"] == "x"
    assert item["label"] is None and source.label(1) is None and not source.classes()


def test_labels_use_the_class_names():
    dataset = Pictures(lambda i: (Image.new("RGB", (4, 4)), i % 2))
    source = open_source(dataset)
    assert [source.label(i) for i in range(3)] == ["0", "1", "0"] and source.classes() == ["0", "1"]
    assert [source.item(i)["label"] for i in range(3)] == [0, 1, 0] and not source.knows_labels
    dataset.classes = ["dog", "cat"]
    source = open_source(dataset)
    assert [source.label(i) for i in range(3)] == ["dog", "cat", "dog"]
    assert source.item(1)["label"] == "cat" and source.classes() == ["dog", "cat"]


@pytest.mark.parametrize("form", [list, torch.tensor, np.array], ids=["list", "tensor", "array"])
def test_targets_are_the_labels_and_build_no_image(form):
    def fail(number):
        assert number == 0, "an image was built for its label"
        return Image.new("RGB", (4, 4))

    dataset = Pictures(fail)
    dataset.targets = form([3, 1, 2, 0])
    source = open_source(dataset)
    assert source.knows_labels and [source.label(i) for i in range(4)] == ["3", "1", "2", "0"]
    assert source.item(0)["label"] == 3 and type(source.item(0)["label"]) is int


def test_mistakes_are_named():
    with pytest.raises(TypeError, match="torch.float32 Tensor.*ToTensor"):
        open_source(Pictures(lambda i: torch.zeros(3, 4, 4)))
    with pytest.raises(TypeError, match='a dict with an "image"; got NoneType'):
        open_source(Pictures(lambda i: {"picture": encoded(i)}))
    with pytest.raises(ValueError, match="the dataset Pictures is empty"):
        open_source(Pictures(encoded, 0))
