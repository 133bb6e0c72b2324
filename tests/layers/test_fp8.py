"""Blocks whose products run in 8 bits. On a CPU they are emulated; the GPU is compared with that.

The bounds: an e4m3 number is off by at most 2^-4 of itself, by about 2^-5.2 in root mean square over a
binade. A product of two has about 2^-4.7 = 0.038 of relative error, the result of a branch of two
products 0.06; the gradients of a student, through twice as many products and back, 0.2.
"""

import copy

import pytest
import torch

import eva_fast
from eva_fast.layers import (
    Block,
    attention,
    drop_copies,
    fp8,
    keep_copies,
    keep_largest,
    products,
    use_fp8,
)
from eva_fast.ops import quantise_fp8
from eva_fast.train import make_optimizer

SIZES = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, mlp_hidden=96, predict_dim=20
)
BF16 = torch.bfloat16
on_gpu = (
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 9),
        reason="needs an NVIDIA GPU with 8-bit floats",
    ),
)


def perturbed(module):
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return module


def student(fp8=True, dtype=BF16, **changed):
    torch.manual_seed(0)
    model = perturbed(eva_fast.create_model(**{**SIZES, **changed}, compute_dtype=dtype))
    if fp8:
        assert use_fp8(model) == {}
    return model


@pytest.fixture
def batch():
    torch.manual_seed(5)
    mask = torch.rand(4, 16).argsort(1)[:, :6].sort(1).values.int()
    return torch.randn(4, 3, 32, 32), mask, torch.randn(24, 20)


def gradients(model, batch):
    model.zero_grad()
    loss = model.loss(*batch)
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def off(found, expected):
    return ((found.double() - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize("tokens", [None, 5], ids=["all tokens", "some tokens"])
def test_a_block_against_float64(tokens):
    """4 x 17 rows, no multiple of 16, and 4 x 5 of them."""
    torch.manual_seed(0)
    block, rows = perturbed(Block(48, 3, 96, 0.0)), None
    if tokens is not None:
        rows = torch.rand(4, 16).argsort(1)[:, :tokens].sort(1).values.int() + 1
    wide = copy.deepcopy(block).double()
    use_fp8(block)
    x = torch.randn(4, 17, 48).to(BF16).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    out, expected = block(x, rows).added(), wide(x64, rows).added()
    kept = x64 if rows is None else x64.gather(1, rows.long()[..., None].expand(-1, -1, 48))
    branches = expected - kept
    assert 0.01 < off(out.double() - kept, branches) < 0.1
    upstream = torch.randn(out.shape)
    out.backward(upstream.to(BF16))
    expected.backward(upstream.to(BF16).double())
    assert 0.01 < off(x.grad, x64.grad) < 0.1
    for (name, p), q in zip(block.named_parameters(), wide.parameters(), strict=True):
        assert p.grad.dtype == torch.float32 and off(p.grad, q.grad) < 0.2, name


def test_a_few_steps_follow_float64(batch):
    """Losses of AdamW steps within 0.02, of a loss that falls by 0.5 and more."""
    losses = []
    for model in (student(), student(fp8=False, dtype=torch.float32).double()):
        optimizer = make_optimizer(model, lr=3e-3, copies=keep_copies(model, model.compute_dtype))
        images, mask, target = batch
        wide = model.pos_embed.dtype == torch.float64
        given = (images.double(), mask, target.double()) if wide else batch
        losses.append([])
        for _ in range(12):
            loss = model.loss(*given)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    found, expected = (torch.tensor(values, dtype=torch.float64) for values in losses)
    assert expected[0] - expected[-1] > 0.5
    assert (found - expected).abs().max() < 0.02


def test_gradients_of_a_student_against_float64(batch):
    images, mask, target = batch
    loss, found = gradients(student(), batch)
    wide = student(fp8=False, dtype=torch.float32).double()
    expected_loss, expected = gradients(wide, (images.double(), mask, target.double()))
    assert abs(loss - expected_loss) < 0.02
    for name, g in found.items():
        assert off(g, expected[name]) < 0.2, name


def test_what_is_no_multiple_of_16_stays_in_bfloat16(batch):
    model = student(fp8=False, mlp_hidden=70)
    left = use_fp8(model)
    names = {f"blocks.{i}.mlp.{name}" for i in range(2) for name in ("fc1", "fc2")}
    assert set(left) == names and set(left.values()) == {"70 is not a multiple of 16"}
    loss, found = gradients(model, batch)
    assert loss.isfinite() and all(g.isfinite().all() for g in found.values())


def test_other_dtypes_compute_as_ever(batch):
    model, plain = (student(fp8, torch.float32) for fp8 in (True, False))
    assert torch.equal(model.loss(*batch), plain.loss(*batch))


def test_weights_are_quantised_once_for_each_value(batch):
    model = student()
    expected = model.loss(*batch)
    assert not {p for n, p in model.named_parameters() if "blocks" in n and p.ndim > 1} & set(
        keep_copies(model, BF16)
    )
    layer = model.blocks[0].mlp.fc1
    first = layer.operand(BF16).copy
    assert layer.operand(BF16).copy is first and torch.equal(model.loss(*batch), expected)
    again = quantise_fp8(layer.weight)
    assert torch.equal(first.rows.float(), again.rows.float()) and first.scale == again.scale
    with torch.no_grad():
        layer.weight.mul_(3)
    second = layer.operand(BF16).copy
    assert second is not first
    again = quantise_fp8(layer.weight)
    assert torch.equal(second.rows.float(), again.rows.float()) and second.scale == again.scale
    drop_copies(model)
    assert layer.operand(BF16).copy is not layer.operand(BF16).copy


def test_the_optimiser_leaves_the_largest_magnitudes_of_weights(batch, monkeypatch):
    """Losses of steps are those without; a weight that came otherwise is looked at anew."""
    curves = []
    for kept in (False, True):
        model = student()
        copies_, parts = keep_copies(model, BF16), keep_largest(model) if kept else {}
        names = {name for name, p in model.named_parameters() if p in parts}
        assert len(names) == (8 if kept else 0) and all(n.endswith("weight") for n in names)
        optimizer = make_optimizer(model, lr=3e-3, copies=copies_, largest=parts)
        curves.append([])
        for step in range(5):
            if step == 3:
                with torch.no_grad():
                    model.blocks[0].mlp.fc1.weight.mul_(4)
            loss, _ = gradients(model, batch)
            curves[-1].append(loss.item())
            optimizer.step()
    assert curves[0] == curves[1]
    fills = []
    monkeypatch.setattr(fp8.largest, "fill", lambda *given: fills.append(given))
    model.loss(*batch)
    assert fills == []  # the last step left them


def test_attention_in_8_bits_is_attention_and_quantising_in_turn(batch, monkeypatch):
    loss, expected = gradients(student(), batch)
    monkeypatch.setattr(attention, "EightBitWeight", ())  # isinstance(..., ()) is False
    again, found = gradients(student(), batch)
    assert torch.equal(loss, again)
    assert all(torch.equal(found[name], g) for name, g in expected.items())


def test_a_copied_model_has_weights_of_its_own(batch):
    model = student()
    keep_copies(model, BF16)
    expected = model.loss(*batch)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(twin.loss(*batch), expected)


def test_recomputed_blocks_have_the_same_numbers(batch):
    model = student()
    keep_copies(model, BF16)
    loss, expected = gradients(model, batch)
    model.set_grad_checkpointing()
    again, found = gradients(model, batch)
    assert torch.equal(loss, again)
    assert all(torch.equal(found[name], g) for name, g in expected.items())


def test_largest_magnitudes_left_with_gradients_change_no_number(batch, monkeypatch):
    """Of the branches' gradients that come from another branch's norm: all but the last block's."""
    seen, found = [], products.left

    def noted(g):
        seen.append(found(g))
        if seen[-1] is not None:
            assert seen[-1].max() == g.float().abs().max()
        return seen[-1]

    monkeypatch.setattr(products, "left", noted)
    loss, expected = gradients(student(), batch)
    # 2 MLPs and 2 attentions; what comes to fc2 of the last block is the head's, the masked
    # attention's own norm is not in 8 bits
    assert sum(parts is not None for parts in seen) == 2
    monkeypatch.setattr(products, "left", lambda g: None)
    again, plain = gradients(student(), batch)
    assert torch.equal(loss, again)
    assert all(torch.equal(plain[name], g) for name, g in expected.items())


def test_a_gradient_that_is_not_finite_shows(batch):
    """It must not be quantised to the largest number: the guard would not skip the step."""
    images, mask, target = batch
    target = target.clone()
    target[3, 4] = float("inf")
    _, found = gradients(student(), (images, mask, target))
    assert not found["blocks.0.attn.qkv.weight"].isfinite().all()


def test_meta_tensors():
    with torch.device("meta"):
        model = eva_fast.create_model(**SIZES, compute_dtype=BF16)
        use_fp8(model)
        keep_copies(model, BF16)
        mask = torch.empty(2, 6, dtype=torch.int32)
        loss = model.loss(torch.empty(2, 3, 32, 32), mask, torch.empty(12, 20))
    loss.backward()
    assert model.blocks[0].mlp.fc2.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=on_gpu, id="on a GPU")])
def test_the_gpu_agrees_with_the_emulation(device, batch):
    """The same scales and the same operands; sums with fewer bits turn some of the numbers that are
    quantised next: within a third of what fp8 itself is off."""
    loss, expected = gradients(student(), batch)
    model = student().to(device)
    keep_copies(model, BF16)
    on_gpu_loss, found = gradients(model, [t.to(device) for t in batch])
    assert abs(on_gpu_loss.cpu() - loss) < 0.007
    for name, g in found.items():
        assert off(g.cpu(), expected[name].double()) < 0.07, name
