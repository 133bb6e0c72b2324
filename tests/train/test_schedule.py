"""The learning rate against the official code's and by its landmarks."""

import pytest

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.train import RunLength, learning_rate


def test_rates_of_official_code(eva_micro):
    expected = eva_micro[0]["lr"].tolist()
    rates = [
        learning_rate(i, total=20, warmup=4, peak=1e-3, minimum=1e-5, start=1e-6) for i in range(20)
    ]
    assert rates == pytest.approx(expected, rel=1e-12)


def test_landmarks():
    def rate(step):
        return learning_rate(step, total=110, warmup=10, peak=1.0, minimum=0.1)

    assert rate(0) == 0.0
    assert rate(9) == rate(10) == 1.0
    assert rate(60) == pytest.approx(0.55)  # half way down the cosine
    assert rate(110) == rate(500) == pytest.approx(0.1)


def test_without_warmup_and_with_one_step():
    assert learning_rate(0, total=5, warmup=0, peak=2.0, minimum=0.0) == 2.0
    assert learning_rate(0, total=5, warmup=1, peak=2.0, minimum=0.0, start=0.5) == 0.5


def test_a_warm_up_in_steps_is_not_cut():
    def warmup(**said):
        return RunLength.of(Config.from_options({"data": "x", "epochs": 5, **said}), 10).warmup

    assert warmup(warmup_epochs=2.0) == 5  # a tenth of the run
    assert warmup(warmup_epochs=2.0, warmup_steps=20) == 20
    assert warmup(warmup_steps=0) == 0 and warmup(warmup_steps=99) == 50
    with pytest.raises(UsageError, match="warmup_steps must be 0 or more"):
        warmup(warmup_steps=-1)


def test_the_length_is_said_before_training():
    length = RunLength.of(Config.from_options({"data": "x", "epochs": 2.5}), steps_per_epoch=40)
    assert length.describe(2600, 64) == "2,600 images: 100 steps of 64, 40 an epoch"
    few = RunLength.of(Config.from_options({"data": "x"}), steps_per_epoch=1).describe(36, 256)
    assert "36 images are fewer than the batch of 256" in few and "7.1 crops of each" in few
    assert "an epoch is one step (150 in all)" in few and "batch_size=36" in few
