"""Fields: what is written for an item, what counts as unreadable, what cannot be a field."""

import numpy as np
import pytest
import torch

from eva_fast.data import (
    CaptionField,
    Field,
    ImageField,
    Item,
    ItemField,
    LabelField,
    Source,
    TextField,
    build_loader,
)
from tests.data.pictures import encoded


class Items(Source):
    """Pictures with whatever `make(number)` gives beside them."""

    def __init__(self, make, count=8):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def item(self, number):
        return Item(image=encoded(number), **self.make(number))


def read(make, fields, count=8, **options):
    """(the one batch, {number: reason} of the images left out)."""
    bad = {}
    with build_loader(
        Items(make, count), fields, batch_size=count, order="once", max_bad_fraction=1.0,
        on_bad=lambda found: bad.update({found.image_id: found.reason}), **options,
    ) as loader:  # fmt: skip
        return next(loader, None), bad


def test_arrays_of_items():
    fields = [
        ItemField("weight", np.float32),
        ItemField("corner", np.int32, (2, 3), key="where"),
        ItemField("flag", np.bool_),
    ]
    batch, bad = read(
        lambda i: {"weight": i / 2, "where": np.full((2, 3), i), "flag": i % 2 == 0}, fields
    )
    assert not bad
    assert batch.weight.dtype == torch.float32 and batch.weight.tolist() == [
        i / 2 for i in range(8)
    ]
    assert batch.corner.shape == (8, 2, 3) and batch.corner.dtype == torch.int32
    assert (batch.corner == torch.arange(8)[:, None, None]).all()
    assert batch.flag.dtype == torch.bool and batch.flag.tolist() == [True, False] * 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_ragged_field_is_packed(workers):
    class Divisors(Field):
        """Pairs (divisor, quotient) of the image's number."""

        def __init__(self):
            super().__init__("divisors", np.int64, (2,), most=40)

        def make(self, item, seed, out):
            found = [(d, item["n"] // d) for d in range(1, item["n"] + 1) if item["n"] % d == 0]
            out[: len(found)] = np.array(found).reshape(-1, 2)
            return len(found)

    source, fields = Items(lambda i: {"n": i}, 40), [ImageField(28), Divisors()]
    with build_loader(
        source, fields, batch_size=40, workers=workers, order="once"
    ) as loader:  # three tickets
        for _ in range(2):
            (batch,) = loader
            assert batch.images.shape == (40, 3, 28, 28)
            assert batch.divisors.lengths[:7].tolist() == [0, 1, 2, 2, 3, 2, 4]
            assert batch.divisors[6].tolist() == [[1, 6], [2, 3], [3, 2], [6, 1]]
            assert batch.divisors.values.shape == (int(batch.divisors.lengths.sum()), 2)
    with build_loader(source, fields, batch_size=20, workers=workers) as loader:
        for _ in range(6):  # the ring is used again and again
            batch = next(loader)
            for number, rows in zip(batch.ids.tolist(), batch.divisors):
                assert (rows[:, 0] * rows[:, 1] == number).all()


def test_ragged_arrays_of_items():
    fields = [ItemField("boxes", np.float32, (5,), most=3)]
    batch, bad = read(lambda i: {"boxes": np.full((i, 5), i) if i else []}, fields, count=6)
    assert batch.ids.tolist() == [0, 1, 2, 3] and batch.boxes.lengths.tolist() == [0, 1, 2, 3]
    assert bad == {n: f"its boxes has {n} elements, more than 3" for n in (4, 5)}
    batch, _ = read(lambda i: {"boxes": []}, fields)
    assert batch.boxes.values.shape == (0, 5) and batch.boxes.lengths.tolist() == [0] * 8


@pytest.mark.parametrize(
    ("field", "given", "reason"),
    [
        (ItemField("x", np.int32), None, "the source gives no x for it, only image"),
        (ItemField("x", np.int32, (2,)), [1, 2, 3], r"its x has shape \[3\] instead of \[2\]"),
        (ItemField("x", np.int32, (2,), most=4), [[1, 2, 3]], r"its x has shape \[3\]"),
        (ItemField("x", np.int32), 1.5, "Cannot cast"),
        (LabelField(key="x"), "cat", "the name 'cat', and no classes are given"),
        (LabelField(["dog"], key="x"), "cat", "'cat' is none of the 1 classes"),
        (LabelField(["dog"], key="x"), 1, "label 1 is not below 1"),
        (LabelField(key="x"), None, "the source gives no x"),
        (TextField("x"), None, "the source gives no x"),
    ],
)
def test_what_does_not_fit_is_told(field, given, reason):
    batch, bad = read(lambda i: {"x": given}, [field], count=2)
    assert batch is None and len(bad) == 2
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(bad[0])


def test_labels_by_name_and_by_number():
    batch, _ = read(
        lambda i: {"label": ["dog", "cat", 1, np.int64(0)][i % 4]}, [LabelField(["cat", "dog"])]
    )
    assert batch.label.dtype == torch.int64 and batch.label.tolist() == [1, 0, 1, 0] * 2
    batch, _ = read(lambda i: {"label": 10**9 if i else None}, [LabelField(missing=-1)], count=2)
    assert batch.label.tolist() == [-1, 10**9]


def test_captions():
    texts = ["", "a dog", "ein Hünd 🐕", "x" * 1000]
    batch, _ = read(lambda i: {"caption": texts[i]}, [CaptionField(most=13)], count=4)
    assert batch.caption.values.dtype == torch.uint8
    # the dog takes four bytes and its place ends behind the thirteenth
    assert batch.caption.texts() == ["", "a dog", "ein Hünd ", "x" * 13]
    several = [f"caption {k}" for k in range(5)]
    drawn = [
        read(lambda i: {"caption": several}, [CaptionField()], 40, seed=s)[0] for s in (0, 0, 1)
    ]
    first, again, other = (batch.caption.texts() for batch in drawn)
    assert first == again != other and set(first) == set(several)


def test_the_view_draws_another_caption_and_the_crop_keeps_its_own():
    several = [f"caption {k}" for k in range(50)]
    fields = [ImageField(28), CaptionField()]
    source = Items(lambda i: {"caption": several})
    with build_loader(source, fields, batch_size=8) as loader:
        first, second = (
            {int(i): t for i, t in zip(b.ids, b.caption.texts())}
            for b in (next(loader), next(loader))
        )
    assert first.keys() == second.keys() and first != second
    with (
        build_loader(source, fields, batch_size=8) as both,
        build_loader(source, fields[:1], batch_size=8) as alone,
    ):
        assert torch.equal(next(both).images, next(alone).images)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ([ImageField(8), ImageField(16)], "two fields are named 'images'"),
        ([ItemField("chunk", np.int32)], "cannot be named 'chunk'"),
        ([ItemField("ids", np.int64)], "named 'ids'"),
        ([ItemField("not a name", np.int64)], "cannot be named 'not a name'"),
    ],
)
def test_names_that_a_batch_cannot_have(fields, words):
    with pytest.raises(ValueError, match=words):
        build_loader(Items(lambda i: {}), fields, batch_size=2)


def test_what_cannot_be_a_field():
    for options in (dict(shape=(3, 0)), dict(most=0)):
        with pytest.raises(ValueError, match="numbers above 0"):
            ItemField("x", np.int32, **options)
    with pytest.raises(ValueError, match="cannot have dtype"):
        ItemField("x", "U8")
    with pytest.raises(ValueError, match="no use for image_size"):
        build_loader(Items(lambda i: {}), [ImageField(8)], batch_size=2, image_size=8)


def test_two_views_of_one_image():
    fields = [ImageField(28), ImageField(14, name="small"), ImageField.centred(28, name="centre")]
    batch, _ = read(lambda i: {}, fields)
    assert batch.small.shape == (8, 3, 14, 14)
    halved = torch.nn.functional.interpolate(
        batch.images.float(), (14, 14), mode="bicubic", antialias=True
    )
    assert (halved - batch.small).abs().mean() < 3  # the same box of the image
    other, _ = read(lambda i: {}, fields, seed=1)
    assert torch.equal(other.centre, batch.centre) and not torch.equal(other.images, batch.images)
