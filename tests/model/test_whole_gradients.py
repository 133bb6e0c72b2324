"""The gradients of a whole student in every dtype, against the plain formulation in float64."""

import pytest
import torch

from eva_fast.model import create_model
from tests.conftest import on_device
from tests.ops.helpers import DTYPES, SHORT

BATCH = 2
SIZES = {
    # heads of 88 and odd widths as ViT-g's, few tokens; then two blocks of the students themselves
    "narrow": dict(img_size=56, embed_dim=176, num_heads=2, mlp_hidden=384, predict_dim=40),
    "ViT-B": dict(img_size=224, embed_dim=768, num_heads=12, mlp_hidden=3072, predict_dim=768),
    "ViT-g": dict(img_size=224, embed_dim=1408, num_heads=16, mlp_hidden=6144, predict_dim=1024),
}


def gradients(model, images, mask, target):
    model.loss(images, mask, target).backward()
    return {name: p.grad.double() for name, p in model.named_parameters()}


def students(sizes, dtype):
    """The plain student in float64, it in `dtype` and the fused one, with the same weights."""
    torch.manual_seed(0)
    shape = dict(patch_size=14, depth=2, **sizes)
    exact = create_model(**shape, kernels="torch").double()
    with torch.no_grad():
        for p in exact.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    others = [create_model(**shape, kernels=k, compute_dtype=dtype) for k in ("torch", "auto")]
    for model in others:
        model.load_official({k: v.float() for k, v in exact.state_dict().items()})
    exact.load_state_dict({k: v.double() for k, v in others[0].state_dict().items()})
    return exact, *others


@pytest.mark.parametrize("dtype", DTYPES, ids=SHORT.get)
@pytest.mark.parametrize("size", SIZES)
def test_no_further_from_float64_than_plain_pytorch(size, dtype, device):
    """Each parameter's gradient, as one vector; half an ulp is allowed where plain is exact."""
    if device == "cpu" and size != "narrow":
        pytest.skip("minutes on a CPU, where the narrow one runs the same kernels")
    sizes = SIZES[size]
    with on_device(device):
        exact, plain, fused = students(sizes, dtype)
        patches = (sizes["img_size"] // 14) ** 2
        masked = patches * 2 // 5
        images = torch.randn(BATCH, 3, sizes["img_size"], sizes["img_size"])
        mask = torch.rand(BATCH, patches).argsort(1)[:, :masked].sort(1).values.int()
        target = torch.randn(BATCH * masked, sizes["predict_dim"])
        wanted = gradients(exact, images.double(), mask, target.double())
        usual, found = (gradients(m, images, mask, target) for m in (plain, fused))
    assert found.keys() == wanted.keys() and len(wanted) > 20
    for name, e in wanted.items():
        error, plains = ((g[name] - e).norm() / e.norm() for g in (found, usual))
        floor = torch.finfo(dtype).eps / 2
        assert error <= max(2 * plains, floor), f"{name}: {error:.2e}, plain {plains:.2e}"
