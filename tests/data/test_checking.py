"""`check`: counts, kinds, damage, speed and the contact sheet."""

import io
import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from eva_fast.data import check
from eva_fast.data.checking import render
from tests.data.pictures import encoded, write_folder, write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


def told(result, width=100):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(result))
    return console.file.getvalue()


def test_folder(tmp_path):
    root = write_folder(tmp_path / "a", 20, classes=2)
    (root / "class0" / "p.png").write_bytes(encoded(5, (300, 200), "PNG"))
    (root / "class0" / "bad.jpg").write_bytes(b"noise")
    (root / "class1" / "cut.jpg").write_bytes(encoded(6, (300, 200))[:-400])
    sheet = tmp_path / "sheet.png"
    result = check(root, gpu_images_per_second=1e6, contact_sheet=sheet)
    json.dumps(result)
    assert (result["images"], result["checked"]) == (23, 23)
    assert result["formats"] == {"JPEG": 20, "PNG": 1} and result["modes"] == {"RGB": 21}
    assert result["labels"] == {"class0": 12, "class1": 11}
    assert result["width"] == {"min": 40, "median": 40, "max": 300}
    assert result["smaller_than_crop"] == 21
    assert result["unreadable_count"] == 2
    assert {bad["name"].rpartition("/")[2] for bad in result["unreadable"]} == {
        "bad.jpg",
        "cut.jpg",
    }
    rate = result["images_per_second_per_core"]
    assert rate > 0 and abs(result["cores_needed"] - 1e6 / rate) < 1 + 1e6 / rate / 100
    with Image.open(sheet) as image:
        pixels = np.asarray(image)
    assert image.width > 8 * 224 and (pixels == 128).all(axis=2).mean() > 0.1
    text = told(result)
    assert "23 (23 of them read)" in text and "bad.jpg" in text and "8.70%" in text
    assert "JPEG 20, PNG 1" in text and "for 1,000,000 images/s" in text


def test_a_part_of_a_large_set(tmp_path):
    result = check(write_folder(tmp_path / "a", 50), limit=10)
    assert (result["images"], result["checked"]) == (50, 10)
    assert result["contact_sheet"] is None and result["cores_needed"] is None


def test_only_the_first_hundred_unreadable_files_are_listed(tmp_path):
    write_folder(tmp_path, 5)
    for number in range(105):
        (tmp_path / f"bad{number}.jpg").write_bytes(b"noise")
    result = check(tmp_path)
    assert (result["unreadable_count"], len(result["unreadable"])) == (105, 100)
    assert "and 5 more" in told(result)


def test_streams_datasets_and_mixes(tmp_path):
    write_shard(tmp_path / "s.tar", range(12))
    result = check(f"pipe:cat {tmp_path}/s.tar")
    assert (result["images"], result["checked"]) == (12, 12)
    result = check([f"pipe:cat {tmp_path}/s.tar", write_folder(tmp_path / "a", 8)])
    assert result["checked"] == 20
    result = check(torch.utils.data.StackDataset([torch.zeros(3, 8, 8, dtype=torch.uint8)] * 4))
    assert result["formats"] == {"tensor": 4}
    assert "tensor 4" in told(result)


def test_names_that_are_not_unicode_can_be_shown(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"noise")
    text = told(check(tmp_path), width=400)  # on one line
    assert "caf\\udce9.jpg: not an image" in text and text.encode()


def test_brackets_in_names_are_shown(tmp_path):
    for name in ("my [bold] pictures", "[red]"):
        write_folder(tmp_path / name, 2)
    text = told(check(tmp_path))
    assert "my [bold] pictures 2" in text and "[red] 2" in text


def test_nothing_readable_is_reported(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    result = check(tmp_path, contact_sheet=tmp_path / "s.png")
    assert result["unreadable_count"] == 1 and result["contact_sheet"] is None
    assert "a.jpg" in told(result)


def test_wrong_settings(tmp_path):
    with pytest.raises(ValueError, match="limit"):
        check("builtin", limit=0)
    for sizes in (dict(image_size=50), dict(patch_size=0), dict(image_size=0)):
        with pytest.raises(ValueError, match="multiple of patch_size"):
            check("builtin", **sizes)
    with pytest.raises(ValueError, match="above 0"):
        check("builtin", gpu_images_per_second=-1)
    with pytest.raises(ValueError, match="is a folder"):
        check("builtin", contact_sheet=tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        check(tmp_path / "nowhere")


def test_images_of_other_channels(tmp_path):
    """Arrays and bands count, and what has three channels does not."""
    folder, rng = tmp_path / "scenes", np.random.default_rng(0)
    folder.mkdir()
    for number in range(5):
        np.save(folder / f"{number}.npy", rng.integers(0, 65536, (5, 40, 60), dtype=np.uint16))
    (folder / "photo.jpg").write_bytes(encoded(6, (300, 200)))
    sheet = tmp_path / "sheet.png"
    result = check(
        folder,
        channels=5,
        image_size=32,
        patch_size=8,
        contact_sheet=sheet,
        gpu_images_per_second=9,
    )
    assert result["formats"] == {"NPY": 5} and (result["checked"], result["images"]) == (6, 6)
    assert result["width"]["max"] == 60 and result["height"]["max"] == 40
    assert result["unreadable_count"] == 1
    assert "3 channels, and the run reads 5" in result["unreadable"][0]["reason"]
    assert result["cores_needed"] == 1 and "NPY 5" in told(result)
    with Image.open(sheet) as image:
        assert image.width > 4 * 64 and np.asarray(image).std() > 10
    assert check(folder, image_size=32, patch_size=8)["formats"] == {"JPEG": 1}
