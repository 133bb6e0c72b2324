"""What is asked of a teacher, and what of it cannot be had."""

import pytest
import torch
import torch.nn.functional as F

from eva_fast.config import Config
from eva_fast.data import ItemField
from eva_fast.objectives import Objective, Request, open_objective
from eva_fast.objectives.request import answer, open_teacher
from eva_fast.train.resolve import sample_options, setting_of
from tests.train.fakes import batch


class Rows(torch.nn.Module):
    """Features that say which patch they are of: [B,4,6], or those of the mask, row by row."""

    dim, grid, name = 6, (2, 2), "rows"

    def forward(self, images, mask=None):
        features = torch.arange(4.0)[:, None] + torch.randn(
            6, generator=torch.Generator().manual_seed(0)
        )
        features = features.expand(len(images), -1, -1)
        if mask is None:
            return features
        return features.gather(1, mask.long()[..., None].expand(-1, -1, 6)).flatten(0, 1)


def setting(**options):
    small = dict(model="eva_ti_patch16_32", embed_dim=32, depth=1, num_heads=2, mlp_hidden=48)
    return setting_of(Config.from_options({**small, "device": "cpu", **options}))


def test_masked_rows_and_all_rows():
    teacher, images = Rows(), batch(0)
    images.mask.add_(2)
    masked = answer(teacher, Request(rows="masked"))(images)
    assert masked.shape == (4, 6) and torch.equal(masked, teacher(images.images)[:, 2])
    assert answer(teacher, Request(rows="all"))(images).shape == (4, 4, 6)


def test_layer_norm_of_each_row():
    raw = answer(Rows(), Request(rows="all"))(batch(0))
    normal = answer(Rows(), Request(rows="all", norm_after="layer_norm"))(batch(0))
    torch.testing.assert_close(normal, F.layer_norm(raw, (6,), eps=1e-5), rtol=0, atol=0)
    torch.testing.assert_close(normal.mean(-1), torch.zeros(4, 4), rtol=0, atol=1e-6)


def test_nothing_asked_is_no_teacher():
    assert open_teacher("no such teacher", None, setting()) is None
    assert answer(None, None)(batch(0)) is None


def test_a_teacher_says_at_which_point_its_features_are():
    teacher = Rows()
    teacher.point = "norm"
    assert open_teacher(teacher, Request(point="norm"), setting()) is teacher


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(point="norm"), "at 'norm'; teacher 'rows' gives them at 'proj'"),
        (Request(point="code"), "codes of a tokenizer, and teacher 'rows' gives features"),
        (Request(cls=True, rows="all"), "CLS row"),
        (Request(norm_after="calibrated"), "whiten=True needs"),
    ],
)
def test_what_a_teacher_does_not_give_is_refused(request_, message):
    with pytest.raises(ValueError, match=message):
        open_teacher(Rows(), request_, setting())


def test_a_cls_row_that_is_optional_is_the_teachers_to_give():
    teacher, optional = Rows(), Request(rows="all", cls="optional")
    assert open_teacher(teacher, optional, setting()) is teacher
    teacher.cls = True
    assert open_teacher(teacher, optional, setting()) is teacher
    target = Everything().example(setting(), teacher, 5)[1]
    assert target.shape == (5, 5, 6)
    with pytest.raises(ValueError, match="asks for no CLS row, which teacher 'rows' gives"):
        open_teacher(teacher, Request(rows="all"), setting())


@pytest.mark.parametrize("whiten", [False, True])
def test_eva_asks_for_masked_rows(whiten):
    asked = open_objective("eva").request(setting(whiten=whiten))
    assert asked.rows == "masked" and asked.calibrated == whiten


def test_eva_s_mask_is_its_own_option():
    eva = open_objective("eva")
    images, mask = eva.sample(setting(img_size=224, patch_size=14))
    assert images.shape == (3, 224, 224) and mask.shape == (105,) and mask.masker.min_block == 16
    _, mask = eva.sample(setting(mask_count=3, mask_min_block=2))
    assert mask.shape == (3,) and mask.masker.min_block == 2


class Everything(Objective):
    """Asks for all rows, and has fields of every kind."""

    def sample(self, setting):
        return [
            *super().sample(setting),
            ItemField("score", "float32"),
            ItemField("boxes", "float32", (4,), most=3),
        ]

    def request(self, setting):
        return Request(rows="all")


def test_an_example_has_the_shapes_of_sample_and_request():
    of = setting()
    noise, target = open_objective("eva").example(of, Rows(), 5)
    assert noise.images.shape == (5, 3, 32, 32) and noise.images.dtype == torch.uint8
    assert noise.mask.shape == (5, 2) and target.shape == (10, 6)
    assert bool((noise.mask.diff() > 0).all()) and noise.mask.max() < 4
    noise, target = Everything().example(of, Rows(), 5)
    assert noise.score.shape == (5,) and len(noise.boxes) == 5 and target.shape == (5, 4, 6)


def test_masked_rows_need_a_mask():
    class Maskless(Everything):
        def request(self, setting):
            return Request(rows="masked")

    with pytest.raises(ValueError, match="no field `mask`, only images, score, boxes"):
        sample_options(setting(), Maskless())


def test_an_objective_must_say_what_it_builds_and_its_loss():
    with pytest.raises(NotImplementedError, match="what it builds"):
        Objective().build(setting(), None)
    with pytest.raises(NotImplementedError, match="what its loss is"):
        Objective().loss(torch.nn.Identity(), batch(0), None)
