"""Features of labelled images: which pixels they are of, which images are left out."""

import numpy as np
import torch
from PIL import Image

from eva_fast.data import open_source
from eva_fast.evaluation.features import extract
from eva_fast.evaluation.splits import known_labels, open_labelled, split
from tests.evaluation.test_splits import make_classes

CPU = torch.device("cpu")


def crops(images):
    assert images.dtype == torch.uint8
    return images.flatten(1)


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
    (source,) = open_labelled(tmp_path)
    found = extract(source, {"crops": crops}, 24, 3, CPU)
    assert found.numbers == list(range(8)) and found.labels == ["a"] * 4 + ["b"] * 4
    for part in split(known_labels([source]), tmp_path):
        values, labels = found.of(part)
        images = values["crops"].view(-1, 3, 24, 24)
        assert len(images) == len(part) and labels.tolist() == list(part.labels)
        for image, number in zip(images, part.numbers):
            wanted = next(e for suffix, e in expected if source.name(number).endswith(suffix))
            assert (image.int() - wanted.int()).abs().float().mean() <= 2


def test_unreadable_images_are_left_out_and_named(tmp_path, caplog):
    make_classes(tmp_path, {"a": 20, "b": 20})
    (tmp_path / "a" / "000.png").write_bytes(b"broken")
    source = open_source(tmp_path)
    found = extract(source, {"crops": crops}, 16, 5, CPU)
    assert found.numbers == list(range(1, 40)) and "000.png" in caplog.text
    train, val = split(known_labels([source]), tmp_path)
    assert len(train) + len(val) == 40
    assert sum(len(found.of(part)[1]) for part in (train, val)) == 39


def test_pictures_above_the_limit_are_left_out_and_named(tmp_path, caplog):
    make_classes(tmp_path, {"a": 4, "b": 4})
    Image.new("RGB", (300, 200)).save(tmp_path / "b" / "zz.png")
    source = open_source(tmp_path)
    assert extract(source, {"crops": crops}, 16, 5, CPU).numbers == list(range(9))
    found = extract(source, {"crops": crops}, 16, 5, CPU, max_megapixels=0.05)
    assert found.numbers == list(range(8)) and "max_megapixels=0.05" in caplog.text


def test_some_images_of_a_source(tmp_path):
    make_classes(tmp_path, {"a": 6, "b": 6})
    source = open_source(tmp_path)
    every = extract(source, {"crops": crops}, 16, 5, CPU)
    some = extract(source, {"crops": crops}, 16, 5, CPU, numbers=[2, 7, 11])
    assert some.numbers == [2, 7, 11] and some.labels == ["a", "b", "b"]
    assert torch.equal(some.values["crops"], every.values["crops"][[2, 7, 11]])
