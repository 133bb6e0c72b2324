"""Whitening: statistics of a calibration pass, kept across a save and a resume."""

from types import SimpleNamespace

import pytest
import torch

from eva_fast.teachers import load_teacher

GRID = (4, 4)


def batches(sizes=(5, 3, 8)):
    generator = torch.Generator().manual_seed(0)
    shape = (3, 32, 32)
    return [
        torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=generator) for n in sizes
    ]


@pytest.fixture
def teacher():
    return load_teacher("hog", grid=GRID, whiten=True)


def test_features_get_mean_zero_and_deviation_one(teacher):
    data = torch.cat(batches())
    plain = load_teacher("hog", grid=GRID)(data).flatten(0, 1).double()
    assert not teacher.whitened
    assert teacher.calibrate(iter(batches())).whitened
    rows = teacher(data).flatten(0, 1).double()
    torch.testing.assert_close(rows.mean(0), torch.zeros(108).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        rows.std(0, correction=0), torch.ones(108).double(), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(teacher.feature_mean.double(), plain.mean(0), atol=1e-7, rtol=1e-6)
    std = plain.std(0, correction=0)
    torch.testing.assert_close(teacher.feature_std.double(), std, atol=1e-7, rtol=1e-6)


def test_the_cut_into_batches_does_not_matter(teacher):
    other = load_teacher("hog", grid=GRID, whiten=True)
    teacher.calibrate(batches())
    other.calibrate(SimpleNamespace(images=part) for part in torch.cat(batches()).split(1))
    torch.testing.assert_close(teacher.feature_mean, other.feature_mean, atol=0, rtol=1e-6)
    torch.testing.assert_close(teacher.feature_std, other.feature_std, atol=0, rtol=1e-6)


def test_max_batches_ends_an_endless_loader(teacher):
    def endless():
        while True:
            yield from batches()

    teacher.calibrate(endless(), max_batches=3)
    again = load_teacher("hog", grid=GRID, whiten=True).calibrate(batches())
    assert torch.equal(teacher.feature_mean, again.feature_mean)


def test_a_constant_channel_is_only_centred(teacher):
    flat = torch.full((4, 3, 32, 32), 50, dtype=torch.uint8)
    teacher.calibrate([flat])
    assert torch.equal(teacher(flat), torch.zeros(4, 16, 108))
    assert torch.isfinite(teacher(batches()[0])).all()


def test_whitening_survives_a_resume(teacher, tmp_path):
    teacher.calibrate(batches())
    torch.save(teacher.state_dict(), tmp_path / "state.pt")
    resumed = load_teacher("hog", grid=GRID, whiten=True)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    images = batches()[0]
    assert resumed.whitened
    assert torch.equal(resumed(images), teacher(images))


def test_state_of_a_network_holds_no_weights(clip_micro):
    from tests.conftest import GOLDEN

    path = GOLDEN / "clip_micro.safetensors"
    teacher = load_teacher(path, whiten=True).calibrate([clip_micro[0]["image"]])
    state = teacher.state_dict()
    assert set(state) == {"feature_mean", "feature_std", "is_whitened"}
    # Inside another module, as a trainer may hold it, it saves and loads just so.
    holder = torch.nn.ModuleDict({"teacher": load_teacher(path, whiten=True)})
    holder.load_state_dict({f"teacher.{k}": v for k, v in state.items()}, strict=True)
    assert set(holder.state_dict()) == {f"teacher.{k}" for k in state}
    image = clip_micro[0]["image"]
    assert torch.equal(holder["teacher"](image), teacher(image))


def test_errors(teacher):
    images = batches()[0]
    with pytest.raises(ValueError, match=r"call teacher\.calibrate"):
        teacher(images)
    with pytest.raises(ValueError, match="no images"):
        teacher.calibrate([])
    with pytest.raises(RuntimeError, match="feature_std"):
        teacher.load_state_dict({"feature_mean": torch.zeros(108), "is_whitened": torch.ones(())})
    with pytest.raises(ValueError, match="not finite"):
        teacher.calibrate([torch.full((1, 3, 32, 32), float("nan"))])
