"""JPEGs left to the device: here torchvision's decoder for CPUs stands in for nvJPEG."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from bench.photos import encode, jpegs
from eva_fast.data import BlockMaskField, ImageField, Item, build_loader, open_source
from eva_fast.data.decode import jpeg
from eva_fast.data.decode.device import DeviceDecoder
from eva_fast.data.loader.maker import Maker
from eva_fast.data.loader.ring import Ring
from eva_fast.data.loader.shardstream import Sample
from eva_fast.data.loader.upload import upload
from eva_fast.data.samples.fields import IDS, VIEWS, Rows
from tests.data.pictures import difference, write_folder

SIZE = 96
needs_turbo = pytest.mark.skipif(not jpeg.available(), reason="libjpeg-turbo was not found")


def made(files, size=SIZE, defers=True, **options):
    """(fields, outcome, rows) of one batch of `files` as a worker makes it."""
    images = ImageField(size, **options)
    if defers:
        images = images.decoded_on(torch.device("cpu"))
    fields = [images, BlockMaskField((6, 6), 15, 4), IDS, VIEWS]
    rows = Ring(1, len(files), fields).rows(0)
    samples = [Sample(i, 0, f"{i}.jpg", Item(image=data)) for i, data in enumerate(files)]
    return fields, Maker(fields[:2], seed=3).from_samples(samples, rows), rows


def uploaded(fields, rows, replaces=True):
    """(batch, bad images): as `upload` makes them for a GPU."""
    return upload(fields, rows, torch.device("cpu"), replaces)


@pytest.fixture(scope="module")
def files():
    return jpegs(8, size=(160, 120), size_bytes=9_000)


@needs_turbo
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random", "lanczos"])
def test_crops_are_those_of_the_workers(files, interpolation):
    png = io.BytesIO()
    Image.open(io.BytesIO(files[0])).save(png, "PNG")
    turned = Image.Exif()
    turned[0x0112] = 6
    rotated = encode(Image.open(io.BytesIO(files[1])), exif=turned, quality=60)
    large = encode(Image.effect_noise((500, 400), 90).convert("RGB"), quality=100)
    files = [*files, png.getvalue(), rotated, large]
    _, _, expected = made(files, defers=False, interpolation=interpolation)
    fields, _, rows = made(files, interpolation=interpolation)
    deferred = rows["images.encoded"][:, 0] > 0
    assert deferred[:8].all() and not deferred[8:].any()
    batch, bad = uploaded(fields, Rows({k: v.copy() for k, v in rows.arrays.items()}))
    assert bad == [] and list(batch) == ["images", "mask", "ids", "views"]
    assert np.array_equal(batch.mask, expected["mask"])
    assert np.array_equal(batch.ids, expected["ids"])
    for image, worker in zip(batch.images, expected["images"]):
        mean, psnr = difference(image.numpy(), worker.astype(int))
        assert mean <= 2 and psnr >= 35


@needs_turbo
def test_a_file_that_only_the_cpu_reads_and_one_that_nobody_does(files, monkeypatch, caplog):
    fields, _, rows = made(files[:4])
    broken = rows["images"][2].reshape(-1)
    broken[2 : rows["images.encoded"][2, 0]] = 0  # passed the worker, spoilt since

    def copied():
        return Rows({k: v.copy() for k, v in rows.arrays.items()})

    batch, (bad,) = uploaded(fields, copied())
    assert bad.image_id == 2 and bad.reason and "decoded by the CPU" in caplog.text
    assert torch.equal(batch.images[2], batch.images[1]) and batch.ids.tolist() == [0, 1, 1, 3]
    assert torch.equal(batch.mask[2], batch.mask[1])
    _, _, expected = made(files[:4], defers=False)
    for row in (0, 1, 3):
        mean, psnr = difference(batch.images[row].numpy(), expected["images"][row].astype(int))
        assert mean <= 2 and psnr >= 35
    batch, (bad,) = uploaded(fields, copied(), replaces=False)
    assert bad.image_id == 2 and batch.ids.tolist() == [0, 1, 3] and len(batch.images) == 3
    rows["images"][:] = 0
    with pytest.raises(RuntimeError, match="no image of a batch"):
        uploaded(fields, copied())
    assert len(uploaded(fields, copied(), replaces=False)[0]) == 0


@needs_turbo
def test_truncated_files_and_bombs_stay_with_the_worker(files):
    bomb = encode(Image.new("RGB", (200, 200)))
    four = [files[0], files[1][:-900], bomb, files[2]]
    _, outcome, rows = made(four, max_megapixels=160 * 120 / 1e6)
    assert [bad.name for bad in outcome.bad][:2] == ["1.jpg", "2.jpg"]
    assert "limit" in outcome.bad[1].reason
    assert rows["ids"].tolist() == [0, 3, 3, 3]


def test_bad_use(tmp_path):
    source = open_source(write_folder(tmp_path / "images", 8))
    options = dict(batch_size=4, image_size=32, patch_size=8, mask_ratio=0.4)
    with pytest.raises(ValueError, match='decode="gpu" needs an NVIDIA GPU'):
        build_loader(source, decode="gpu", **options)
    with pytest.raises(ValueError, match="decode must be"):
        build_loader(source, decode="nvjpeg", **options)


def test_jittered_colours_are_refused():
    with pytest.raises(ValueError, match="decode='gpu' has no colour jitter.*use decode='cpu'"):
        ImageField(32, color_jitter=0.4).decoded_on(torch.device("cpu"))


def test_torchvision_without_nvjpeg(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("torchvision was not compiled with nvJPEG")

    monkeypatch.setattr("torchvision.io.decode_jpeg", refuse)
    with pytest.raises(ValueError, match='with nvJPEG.*decode="cpu" works everywhere'):
        DeviceDecoder(torch.device("cpu"), 32)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_loader_with_nvjpeg(tmp_path):
    for number, data in enumerate(jpegs(24)):
        (tmp_path / f"{number:03d}.jpg").write_bytes(data)
    options = dict(batch_size=8, mask_ratio=0.4, workers=2, device="cuda", seed=5)
    source = open_source(tmp_path)
    with (
        build_loader(source, decode="gpu", **options) as ours,
        build_loader(source, **options) as workers,
    ):
        for _ in range(6):
            a, b = next(ours), next(workers)
            assert torch.equal(a.mask, b.mask) and torch.equal(a.ids, b.ids)
            for image, other in zip(a.images.cpu().numpy(), b.images.cpu().numpy()):
                mean, psnr = difference(image, other.astype(int))
                assert mean <= 2 and psnr >= 35
