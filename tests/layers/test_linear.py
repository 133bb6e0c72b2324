import pytest
import torch

from eva_fast.layers import Linear, patch_embed
from eva_fast.model import create_model
from eva_fast.ops.linear import linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_linear_is_torchs(dtype, kernels):
    torch.manual_seed(0)
    layer = Linear(30, 20)
    wide = torch.nn.Linear(30, 20, dtype=torch.float64)
    wide.load_state_dict(layer.state_dict())
    x = torch.randn(2, 5, 30).to(dtype).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    out, expected = layer(x), wide(x64)
    assert out.dtype == dtype
    upstream = torch.randn_like(out)
    out.backward(upstream)
    expected.backward(upstream.double())
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert layer.weight.grad.dtype == layer.bias.grad.dtype == torch.float32
    for a, b in (
        (out, expected),
        (x.grad, x64.grad),
        (layer.weight.grad, wide.weight.grad),
        (layer.bias.grad, wide.bias.grad),
    ):
        assert (a.double() - b).norm() <= tolerance * b.norm()


def test_rows_that_end_in_zeros():
    """As patch rows do that are widened to 16 bytes: the same products, and gradients of the weight's
    own columns."""
    x, weight, bias = torch.randn(7, 30), torch.randn(5, 30), torch.randn(5)
    wide = torch.cat((x, torch.zeros(7, 2)), 1)
    found, expected = [], []
    for rows, results in ((wide, found), (x, expected)):
        w, b = weight.clone().requires_grad_(), bias.clone().requires_grad_()
        out = linear(rows, w, b)
        results += [out, *torch.autograd.grad(out.square().sum(), (w, b))]
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_a_network_on_widened_rows(monkeypatch):
    """The student and a teacher compute the same from rows of 592 columns, which a GPU reads, and the
    weight's gradient has its shape."""
    images = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    mask = torch.tensor([[1, 4], [0, 7]], dtype=torch.int32)
    torch.manual_seed(0)
    student = create_model(
        "eva_ti_patch14_224", img_size=56, depth=1, embed_dim=32, num_heads=2, mlp_hidden=64
    )
    results = []
    for columns in (588, 592):
        monkeypatch.setattr(patch_embed, "aligned_columns", lambda *_, n=columns: n)
        student.zero_grad()
        out = student(images, mask)
        out.square().sum().backward()
        results.append((out.detach(), student.patch_embed.proj.weight.grad))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
