"""Several processes train another library's network as one does."""

import pytest

import eva_fast
from tests.train.several import OPTIONS, done, pretrain
from tests.train.test_several import is_close

pytest.importorskip("timm")
pytestmark = [pytest.mark.dist, pytest.mark.slow]


@pytest.mark.parametrize("sharding", ["replicate", "full"])
def test_two_processes_learn_what_one_does(tmp_path, sharding):
    """Drop-path is drawn for the whole batch, and timm's blocks are units of their own."""
    options = {
        **OPTIONS,
        "model": "timm/vit_tiny_patch16_224",
        "patch_size": 8,
        "steps": 5,
        "ema": 0.9,
    }
    eva_fast.pretrain(out=tmp_path / "alone", **options)
    done(pretrain(2, tmp_path / "run", sharding=sharding, **options))
    is_close(tmp_path / "run", tmp_path / "alone")
