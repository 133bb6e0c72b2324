"""Masked ViTs of timm against what timm's own parts give, put together by hand."""

import pytest
import torch
import torch.nn.functional as F

from eva_fast.model import create_model
from tests.model.networks.cases import VITS, shaken, vit

timm = pytest.importorskip("timm")

MASKED = torch.tensor([[1, 2, 7, 12], [0, 3, 8, 15]], dtype=torch.int32)


def student_of(kind, **more):
    name, options = vit(kind)
    torch.manual_seed(0)
    student = create_model(name, **options, predict_dim=6, **more)
    return shaken(student).eval()


def by_hand(student, images, mask):
    """The tokens after the last norm, by the parts of timm's ViT and Eva in their forwards' order."""
    net = student.encoder.network
    patches = net.patch_embed(images)
    flat = patches.flatten(1, -2)
    hidden = torch.zeros(flat.shape[:2], dtype=torch.bool)
    hidden[torch.arange(len(mask))[:, None], mask.long()] = True
    flat = torch.where(hidden[..., None], student.mask_token, flat)
    x = net._pos_embed(flat.view(patches.shape))
    x, rope = x if isinstance(x, tuple) else (x, None)
    x = net.norm_pre(x)
    for block in net.blocks:
        x = block(x) if rope is None else block(x, rope=rope)
    x = net.norm(x)
    return net.fc_norm(x) if isinstance(net.norm, torch.nn.Identity) else x


@pytest.mark.parametrize(
    "kind", ["vit", "deit", "deit3", "eva", "eva02", "siglip", "dinov2", "dinov3"]
)
@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_loss_and_gradients(kind, kernels):
    student = student_of(kind, kernels=kernels).double()
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(2, 3, 32, 32, generator=generator, dtype=torch.float64)
    target = torch.randn(8, 6, generator=generator, dtype=torch.float64)
    loss = student.loss(images, MASKED, target)
    loss.backward()
    found = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    student.zero_grad()

    tokens = by_hand(student, images, MASKED)
    rows = [tokens[i, student.prefix_tokens + int(j)] for i in range(2) for j in MASKED[i]]
    prediction = torch.stack(rows) @ student.lm_head.weight.T + student.lm_head.bias
    expected = -(F.normalize(prediction, dim=1) * F.normalize(target, dim=1)).sum(1).mean()
    expected.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(student(images, MASKED), prediction, rtol=1e-12, atol=1e-12)
    trained = {n for n, p in student.named_parameters() if p.requires_grad}
    assert found.keys() == trained
    for name, value in student.named_parameters():
        if value.requires_grad:
            torch.testing.assert_close(found[name], value.grad, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("kind", VITS)
def test_masked_pixels_are_hidden(kind):
    student = student_of(kind)
    images = torch.randn(2, 3, 32, 32)
    other = images.clone()
    for image, patches in enumerate(MASKED.tolist()):
        for patch in patches:
            y, x = divmod(patch, 4)
            other[image, :, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] = torch.randn(3, 8, 8)
    seen = torch.randn(3, 8, 8)
    with torch.no_grad():
        expected = student(images, MASKED)
        assert torch.equal(student(other, MASKED), expected)
        images[:, :, :8, 8:16] = seen  # patch 1: masked in the first image alone
        found = student(images, MASKED)
        assert torch.equal(found[:4], expected[:4]) and not torch.equal(found[4:], expected[4:])
        bools = torch.zeros(2, 16, dtype=torch.bool).scatter(1, MASKED.long(), True)
        assert torch.equal(student(images, bools), found)
    assert "forward" not in vars(student.encoder.network.patch_embed)


def test_a_target_of_another_shape():
    student = student_of("vit")
    with pytest.raises(ValueError, match=r"target has shape \(8, 5\).*\(8, 6\)"):
        student.loss(torch.randn(2, 3, 32, 32), MASKED, torch.randn(8, 5))
    with pytest.raises(ValueError, match=r"must be \[B,3,32,32\]"):
        student(torch.randn(2, 3, 16, 16), MASKED)
