import pytest
import torch

from eva_fast.layers import Linear


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
