"""The teachers that docs/extend/teacher.md adds from outside, through the public seam alone."""

import pytest
import torch

import eva_fast
from tests.pages.blocks import python_of

OPTIONS = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=4, mlp_hidden=48,
    batch_size=8, steps=2, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


@pytest.fixture(scope="module")
def page():
    """What the page's blocks of code define, but for the run it shows."""
    code = python_of("extend/teacher.md", 0, 2)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 60
    names = {"__name__": "page"}
    exec(code, names)
    return names


@pytest.mark.parametrize("kind", ["Edges", "Colours"])
def test_a_run_with_it(page, tmp_path, kind):
    whiten = kind == "Edges"
    teacher = page[kind]((4, 4)) if whiten else page[kind]()
    result = eva_fast.pretrain(teacher=teacher, out=tmp_path / "run", whiten=whiten, **OPTIONS)
    assert result.metrics["step"] == 2 and -1 <= result.metrics["loss"] <= 1
    assert result.model.sizes.predict_dim == 3 and result.picture.is_file()


@pytest.mark.parametrize("kind", ["Edges", "Colours"])
def test_masked_rows_are_the_full_rows(page, kind):
    teacher = page["Edges"]((4, 4), whiten=False) if kind == "Edges" else page["Colours"]()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mask = torch.tensor([[0, 3, 9], [1, 2, 15]], dtype=torch.int32)
    rows = teacher(images)
    assert rows.shape == (2, 16, 3)
    expected = torch.cat([rows[0, mask[0].long()], rows[1, mask[1].long()]])
    assert torch.equal(teacher(images, mask), expected)
