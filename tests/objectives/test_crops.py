"""Colours and filters of the crops that student and teacher see, as the options of a run say them."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

import eva_fast
from bench.photos import jpegs
from eva_fast.config import Config
from eva_fast.data import Batch, Cropper, Item
from eva_fast.objectives import open_objective
from eva_fast.objectives.request import Request, answer
from eva_fast.train.resolve import setting_of

TINY = dict(
    device="cpu", progress=False, kernels="torch", teacher="hog", batch_size=8, log_every=1, steps=4,
    model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, mlp_hidden=48, mask_min_block=1,
)  # fmt: skip
CROPS = dict(color_jitter=0.4, interpolation="random", teacher_interpolation="bilinear")


def fields(objective="eva", **options):
    setting = setting_of(Config.from_options({**TINY, "objective": objective, **options}))
    return {field.name: field for field in open_objective(objective).sample(setting)}


def test_both_views_are_one_crop_of_one_jittered_image():
    item = Item(image=jpegs(1)[0])
    found = fields(**CROPS)
    assert list(found) == ["images", "teacher_images", "mask"]
    for seed in range(6):
        student, teacher = np.empty((2, 3, 32, 32), np.uint8)
        found["images"].make(item, seed, student)
        found["teacher_images"].make(item, seed, teacher)
        cropper = Cropper(32, interpolation="bilinear", color_jitter=0.4)
        assert np.array_equal(teacher, cropper(item.image, seed))
        drawn = Cropper(32, interpolation="random").filter(seed)
        assert np.array_equal(student, teacher) == (drawn == "bilinear")


def test_what_nobody_says_is_the_objective_s():
    assert list(fields()) == ["images", "mask"]
    for name, jitter, kind in (
        ("eva", 0, "bicubic"),
        ("tokens", 0.4, "bicubic"),
        ("fd", 0, "bilinear"),
    ):
        cropper = fields(name)["images"].cropper
        assert (cropper.color_jitter, cropper.interpolation) == (jitter, kind), name
        cropper = fields(name, color_jitter=0.1, interpolation="hamming")["images"].cropper
        assert (cropper.color_jitter, cropper.interpolation) == (0.1, "hamming"), name
    assert fields("tokens", color_jitter=0.0)["images"].cropper.color_jitter == 0


def test_the_teacher_answers_of_its_own_view():
    class Teacher(torch.nn.Module):
        def forward(self, images, mask=None):
            return images.float().mean((2, 3))

    ask = answer(Teacher(), Request(rows="all"))
    student, teacher = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    assert ask(Batch(images=student)).sum() == 0
    assert ask(Batch(images=student, teacher_images=teacher)).sum() == 6


def test_channels_have_filters_too():
    item = Item(image=_npy(np.random.default_rng(0).integers(0, 255, (2, 40, 50), dtype=np.uint8)))
    options = dict(channels=2, teacher_channels=(0, 1, 1), teacher_interpolation="hamming")
    found = fields(**options)
    student, teacher = np.empty((2, 2, 32, 32), np.float32)
    found["images"].make(item, 3, student)
    found["teacher_images"].make(item, 3, teacher)
    assert 0 < np.abs(student - teacher).max() < 1
    with pytest.raises(ValueError, match="color_jitter is of images with three channels, not 2"):
        fields(**options, color_jitter=0.2)


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """JPEGs larger than the crop."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(16):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        coarse.resize((90, 70), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg")
    return folder


def test_runs_see_the_same_whoever_decodes_and_wherever_they_go_on(photos, tmp_path):
    def losses(name, **options):
        out = tmp_path / name
        options = {
            **TINY,
            **CROPS,
            "checkpoint_every": 2,
            "data": str(photos),
            "out": out,
            **options,
        }
        result = eva_fast.pretrain(**options)
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines], result.weights.read_bytes()

    class Killed(Exception):
        pass

    class Dies(eva_fast.Callback):
        def on_step(self, training):
            if training.step == 3:
                raise Killed

    whole = losses("whole", workers=0)
    assert losses("workers", workers=2) == whole
    with pytest.raises(Killed):
        losses("killed", workers=0, callbacks=[Dies()])
    assert losses("killed", workers=0, resume="auto")[1] == whole[1]
    assert losses("plain", workers=0, color_jitter=0.0)[0] != whole[0]
    with pytest.raises(ValueError, match="color_jitter"):
        losses("killed", workers=0, resume="auto", color_jitter=0.3)


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(color_jitter=-1), "color_jitter must be 0 or more, got -1"),
        (dict(color_jitter=float("inf")), "color_jitter must be 0 or more"),
        (dict(interpolation="nearest"), "interpolation must be one of bicubic, bilinear"),
        (dict(mask_max_block=0), "mask_max_block must be between 1 and 16 here, got 0"),
        (
            dict(objective="mae", mask_max_block=3, mask_min_block=None),
            "mask_max_block is of masks in",
        ),
        (
            dict(objective="pixels", teacher_interpolation="bilinear"),
            "teacher_interpolation: the objective 'pixels' has no teacher",
        ),
    ],
)
def test_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        fields(**options)
