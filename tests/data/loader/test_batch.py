"""Batches and ragged values: access by name, cutting, moving."""

import copy
import pickle

import pytest
import torch

from eva_fast.data import Batch, Ragged


def ragged(lengths, width=2):
    total = sum(lengths)
    values = torch.arange(total * width, dtype=torch.float32).view(total, width)
    return Ragged(values, torch.tensor([0, *lengths]).cumsum(0))


@pytest.fixture
def batch():
    return Batch(
        images=torch.arange(7 * 12).view(7, 3, 2, 2), label=torch.arange(7),
        boxes=ragged([2, 0, 1, 3, 0, 0, 4]), ids=torch.arange(7), views=torch.zeros(7),
    )  # fmt: skip


def test_fields_by_attribute_and_by_item(batch):
    assert batch.label is batch["label"] and "boxes" in batch and "mask" not in batch
    assert list(batch) == ["images", "label", "boxes", "ids", "views"] and len(batch) == 7
    with pytest.raises(AttributeError, match="no field 'mask', only images, label, boxes"):
        batch.mask  # noqa: B018
    with pytest.raises(KeyError):
        batch["mask"]
    assert "label: torch.int64 [7]" in repr(batch) and "boxes: torch.float32 ragged" in repr(batch)
    for other in (copy.copy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(other.images, batch.images) and list(other) == list(batch)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_chunks_are_those_of_tensors(batch, count):
    parts = batch.chunk(count)
    for part, images in zip(parts, batch.images.chunk(count), strict=True):
        assert torch.equal(part.images, images)
        assert part.images.untyped_storage().data_ptr() == images.untyped_storage().data_ptr()
    rows = [row for part in parts for row in part.boxes]
    assert all(map(torch.equal, rows, batch.boxes)) and len(rows) == 7
    assert all(len(part.boxes) == len(part) for part in parts)


def test_moving_leaves_what_says_which_images_these_are(batch):
    moved = batch.to("meta")
    assert moved.images.is_meta and moved.boxes.values.is_meta and moved.label.is_meta
    assert not moved.ids.is_meta and not moved.views.is_meta
    assert torch.equal(moved.boxes.offsets, batch.boxes.offsets)


def test_ragged():
    rows = ragged([2, 0, 3])
    assert len(rows) == 3 and rows.lengths.tolist() == [2, 0, 3]
    assert rows[1].shape == (0, 2) and torch.equal(rows[-1], rows.values[2:])
    assert [len(row) for row in rows] == [2, 0, 3]
    part = rows[1:]
    assert part.offsets.tolist() == [0, 0, 3] and torch.equal(part.values, rows.values[2:])
    assert len(rows[3:]) == 0 and len(rows[2:1]) == 0
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            rows[wrong]
    with pytest.raises(ValueError, match="step of 1"):
        rows[::2]
