"""Samples of any number of channels: the crops of three, in float32, in all of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from eva_fast.data import BandsField, ImageField, build_loader, open_source
from eva_fast.data.decode.formats import image_suffixes, reading_arrays
from eva_fast.data.sources.base import Item
from eva_fast.errors import UsageError
from tests.data.decode.test_bands import noise, npy, tiff
from tests.data.pictures import write_folder

C5 = dict(mean=[0.1, 0.2, 0.3, 0.4, 0.5], std=[0.5, 0.4, 0.3, 0.2, 0.1])


class Arrays:
    """A dataset whose items are arrays with a label."""

    def __len__(self):
        return 3

    def __getitem__(self, number):
        return noise((20, 24, 5), seed=number), number


def crop_of(field, image, seed):
    out = np.full(field.shape, np.nan, np.float32)
    field.make(Item(image=image), seed, out)
    return out


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crops_are_those_of_three_channels(interpolation):
    """The same boxes and mirrorings of the same seeds. Bytes are rounded after each of Pillow's two
    passes, whose weights are at most 1.3 in sum without their signs; torch's antialiased filter in
    float64 is the same but for the rounding."""
    array = noise((40, 52, 3), np.uint8) // 2 + 64
    options = dict(scale=(0.2, 1.0), interpolation=interpolation)
    bytes_, floats = ImageField(16, **options), BandsField([0.0] * 3, [1.0] * 3, 16, **options)
    pixels = torch.from_numpy(array.transpose(2, 0, 1).copy())
    for seed in range(20):
        rounded = np.zeros((3, 16, 16), np.uint8)
        bytes_.make(Item(image=pixels), seed, rounded)
        found = crop_of(floats, array, seed) * 255
        assert np.abs(found - rounded).max() <= 0.5 * 1.3 + 0.5
        box = floats.cropper.box(52, 40, seed)
        part = pixels[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
        exact = F.interpolate(
            part.double(), (16, 16), mode=interpolation, antialias=True, align_corners=False
        )[0]
        exact = exact.flip(-1) if box.flip else exact
        np.testing.assert_allclose(found, exact, atol=2e-3)


def test_channels_are_normalised_and_mirrored_alike():
    array = noise((30, 40, 5), np.float32)
    field = BandsField(**C5, size=12)
    plain = BandsField([0.0] * 5, [1.0] * 5, 12)
    for seed in range(4):
        found = crop_of(field, npy(array), seed)
        for channel in range(5):
            alone = BandsField([0.0], [1.0], 12)
            expected = crop_of(alone, npy(array[..., channel]), seed)[0]
            np.testing.assert_array_equal(crop_of(plain, npy(array), seed)[channel], expected)
            expected = (expected - np.float32(C5["mean"][channel])) / np.float32(C5["std"][channel])
            np.testing.assert_allclose(found[channel], expected, rtol=1e-6, atol=1e-6)


def test_the_centre():
    array = noise((20, 30, 5), np.uint16)
    found = crop_of(BandsField.centred([0.0] * 5, [1.0] * 5, 20), array, 7)
    np.testing.assert_allclose(found, array[:, 5:25].transpose(2, 0, 1) / 65535, rtol=1e-6)


def test_folders_lists_shards_and_datasets(tmp_path):
    """Arrays count as images where a run reads them, and nowhere else."""
    import tarfile

    folder = write_folder(tmp_path / "images", 2)
    for number in range(3):
        (folder / f"a{number}.npy").write_bytes(npy(noise((20, 24, 5), seed=number)))
        (folder / f"b{number}.tif").write_bytes(tiff(noise((5, 20, 24), seed=number)))
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(folder / "a0.npy", "x/a0.npy")
        tar.add(folder / "b0.tif", "x/b0.tif")
    (tmp_path / "list.txt").write_text("images/a1.npy\nimages/b1.tif\n")
    arrays = Arrays()

    assert ".npy" not in image_suffixes() and len(open_source(folder)) == 5
    field = BandsField(**C5, size=8, flip=0.0)
    with reading_arrays():
        assert len(open_source(folder)) == 8  # two JPEGs are none of five channels
        for data, readable in (
            (folder, 6), (tmp_path / "list.txt", 2), (tmp_path / "shard.tar", 2),
            (f"pipe:cat {tmp_path}/shard.tar", 2), (arrays, 3),
        ):  # fmt: skip
            source = open_source(data)
            with build_loader(
                source, [field], batch_size=8, order="once", max_bad_fraction=1.0
            ) as loader:
                images = torch.cat([batch.images for batch in loader])
            assert images.shape == (readable, 5, 8, 8) and images.dtype == torch.float32
            assert images.isfinite().all()
    assert ".npy" not in image_suffixes()


@pytest.mark.parametrize(
    ("mean", "std"), [([], []), ([0.5] * 17, [0.5] * 17), ([0.5], [0.5, 0.5]), ([0.5], [0.0])]
)
def test_numbers_that_do_not_fit(mean, std):
    with pytest.raises(UsageError, match="mean and std are 1 to 16 numbers each"):
        BandsField(mean, std, 8)
