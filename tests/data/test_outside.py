"""The source and the field that docs/extend/source.md adds from outside, through the public seam."""

import json

import pytest
import torch
from PIL import Image

import eva_fast
from eva_fast.data import Item, LabelField, Source, build_loader, open_source
from tests.data.pictures import encoded
from tests.pages.blocks import python_of


@pytest.fixture(scope="module")
def page():
    """What the page's blocks of code define, but for the run it shows."""
    code = python_of("extend/source.md", 0, 2, 3)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    names = {"__name__": "page"}
    exec(code, names)
    return names


def test_what_the_items_carry_is_in_the_batch(page):
    batch, data = page["batch"], page["Squares"]()
    assert batch.images.shape == (64, 3, 32, 32) and batch.images.dtype == torch.uint8
    wanted = [data[number] for number in batch.ids.tolist()]
    assert batch["label"].tolist() == [item["label"] for item in wanted]
    assert batch.caption.texts() == [item["caption"] for item in wanted]
    assert [row.tolist() for row in batch.tags] == [item["tags"] for item in wanted]
    assert batch.tags.values.shape == (128,) and (batch.views == 0).all()


def test_a_run_on_it(page, tmp_path):
    result = eva_fast.pretrain(
        data=page["Squares"](), out=tmp_path / "run", model="eva_ti_patch8_32", embed_dim=32,
        depth=1, num_heads=4, mlp_hidden=48, batch_size=8, steps=2, workers=0, device="cpu",
        kernels="torch", progress=False,
    )  # fmt: skip
    assert result.metrics["step"] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_field_from_outside(page, workers):
    fields = [page["Noisy"](4), LabelField()]
    source = open_source(page["Squares"]())
    with build_loader(source, fields, batch_size=50, workers=workers, order="once") as loader:
        noisy, label = (torch.cat([b[name] for b in loader]) for name in ("noisy", "label"))
        again = torch.cat([batch.noisy for batch in loader])
    assert torch.equal(noisy, again) and 0.03 < (noisy != label).float().mean() < 0.13
    with build_loader(source, fields, batch_size=400, order="once", seed=1) as loader:
        assert not torch.equal(next(loader).noisy, noisy)


class Listed(Source):
    """Pictures that a JSON-lines file names, with their class."""

    knows_labels = True

    def __init__(self, listing):
        self.root = listing.parent
        self.rows = [json.loads(line) for line in listing.read_text().splitlines()]

    def __len__(self):
        return len(self.rows)

    def item(self, number):
        row = self.rows[number]
        return Item(image=(self.root / row["file"]).read_bytes(), label=row["class"])

    def name(self, number):
        return self.rows[number]["file"]

    def label(self, number):
        return self.rows[number]["class"]


def test_a_source_class_from_outside(tmp_path):
    names = [("a.jpg", "dog"), ("b.jpg", "cat"), ("gone.jpg", "cat"), ("c.jpg", "dog")]
    for number, (name, _) in enumerate(names):
        if name != "gone.jpg":
            (tmp_path / name).write_bytes(encoded(number))
    rows = [json.dumps({"file": name, "class": label}) for name, label in names]
    (tmp_path / "list.jsonl").write_text("\n".join(rows))
    source = open_source(Listed(tmp_path / "list.jsonl"))
    assert source.classes() == ["cat", "dog"]
    assert source.read(1) == encoded(1) and source.item(3).image == encoded(3)
    met = []
    loader = build_loader(
        source, [LabelField(source.classes())], batch_size=8, order="once", on_bad=met.append,
        max_bad_fraction=1.0,
    )  # fmt: skip
    (batch,) = loader
    assert batch.ids.tolist() == [0, 1, 3] and batch.label.tolist() == [1, 0, 1]
    (bad,) = met
    assert bad.name == "gone.jpg" and "FileNotFoundError" in bad.reason


class Plain(Source):
    """Only images, and their number's parity as label."""

    def __len__(self):
        return 6

    def read(self, number):
        return Image.new("RGB", (8, 8), (number, 0, 0))

    def label(self, number):
        return "odd" if number % 2 else None


def test_a_source_of_images_alone():
    source = open_source(Plain())
    assert source.name(2) == "Plain[2]" and source.item(3)["label"] == "odd"
    fields = [LabelField(["odd"], missing=-1)]
    with build_loader(source, fields, batch_size=6, order="once") as loader:
        assert next(loader).label.tolist() == [-1, 0, -1, 0, -1, 0]
    with pytest.raises(TypeError, match="cannot be read by number"):
        Source().read(0)
