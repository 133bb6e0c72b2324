"""Kept copies of weights: written by the optimiser, rounded anew whoever else changed a parameter."""

import copy

import pytest
import torch

import eva_fast
from eva_fast import ops
from eva_fast.layers import Attention, drop_copies, keep_copies
from eva_fast.train import make_optimizer

SIZES = dict(
    img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, mlp_hidden=70, predict_dim=20
)
BF16 = torch.bfloat16


def student(seed=0, dtype=BF16):
    torch.manual_seed(seed)
    model = eva_fast.create_model(**SIZES, compute_dtype=dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


@pytest.fixture
def batch():
    torch.manual_seed(5)
    mask = torch.rand(4, 16).argsort(1)[:, :6].sort(1).values.int()
    return torch.randn(4, 3, 32, 32), mask, torch.randn(24, 20)


def features(model, images):
    with torch.no_grad():
        return model.forward_features(images)


def test_every_matrix_and_both_biases_of_attention_are_kept():
    model = student()
    copies = keep_copies(model, BF16)
    names = {name for name, p in model.named_parameters() if p in copies}
    assert names == {
        *("patch_embed.proj.weight", "lm_head.weight"),
        *(
            f"blocks.{i}.{name}"
            for i in range(2)
            for name in (
                *("attn.qkv.weight", "attn.proj.weight", "attn.q_bias", "attn.v_bias"),
                *("mlp.fc1.weight", "mlp.fc2.weight"),
            )
        ),
    }
    for p, kept in copies.items():
        assert kept.dtype == BF16 and torch.equal(kept, p.bfloat16())


def test_kept_copies_change_no_number(batch):
    model = student()
    expected = model.loss(*batch)
    keep_copies(model, BF16)
    assert torch.equal(model.loss(*batch), expected)
    drop_copies(model)
    assert torch.equal(model.loss(*batch), expected)


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
def test_the_optimiser_writes_them(kernels, dtype, batch):
    """The numbers of a student without copies, bit for bit, and nothing is rounded twice."""
    if kernels == "triton":
        pytest.skip("interpreted, the steps take minutes; one layer's step is the next test's")
    plain, model = student(dtype=dtype), student(dtype=dtype)
    copies = keep_copies(model, dtype)
    pairs = [
        (plain, make_optimizer(plain, lr=1e-2)),
        (model, make_optimizer(model, lr=1e-2, copies=copies)),
    ]
    losses = []
    for student_, optimizer in pairs:
        for _ in range(3):
            loss = student_.loss(*batch)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss)
    assert torch.equal(*losses)
    versions = [kept._version for kept in copies.values()]
    assert torch.equal(plain.loss(*batch), model.loss(*batch))
    assert versions == [kept._version for kept in copies.values()]  # none was written in the call
    for p, kept in copies.items():
        assert torch.equal(kept, p.to(kept.dtype))


@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=["fp32", "bf16"])
def test_the_optimiser_writes_the_thirds_of_a_packed_bias(kernels, dtype):
    torch.manual_seed(0)
    layer = Attention(20, 2)
    copies = keep_copies(layer, dtype)
    optimizer = make_optimizer(layer, lr=1e-2, copies=copies)
    for p in layer.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert layer.q_bias in copies and layer.v_bias in copies and layer.q_bias.any()
    packed = copies[layer.q_bias]._base
    assert packed.shape == (60,) and not packed[20:40].any()
    for p, kept in copies.items():
        assert torch.equal(kept, p.to(dtype))


def load(model, other):
    model.load_state_dict(other.state_dict())


def load_official(model, other):
    model.load_official(other.official_state_dict())


def assign(model, other):
    model.load_state_dict(copy.deepcopy(other.state_dict()), assign=True)


@torch.no_grad()
def in_place(model, other):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.copy_(q)


def swap_data(model, other):
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.data = q.data.clone()


def swap_data_twice(model, other):
    for q in (torch.zeros_like, torch.clone):
        for p, o in zip(model.parameters(), other.parameters(), strict=True):
            p.data = q(o.data)


def in_inference_mode(model, other):
    with torch.inference_mode():
        load(model, other)


@pytest.mark.parametrize(
    "change",
    [load, load_official, assign, in_place, swap_data, swap_data_twice, in_inference_mode],
    ids=lambda f: f.__name__,
)
def test_changed_parameters_are_rounded_anew(change, batch):
    model, other = student(0), student(1)
    keep_copies(model, BF16)
    before, expected = features(model, batch[0]), features(other, batch[0])
    change(model, other)
    assert torch.equal(features(model, batch[0]), expected)
    assert (before - expected).norm() > 0.1 * expected.norm()


@pytest.mark.parametrize(
    "options", [dict(foreach=False), dict(foreach=True)], ids=["for loop", "foreach"]
)
def test_another_optimiser_trains_as_without_copies(options, batch):
    losses = []
    for keep in (False, True):
        model = student()
        if keep:
            keep_copies(model, BF16)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **options)
        for _ in range(4):
            loss = model.loss(*batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(loss.detach())
    assert torch.equal(*losses)


def test_copies_in_another_dtype_are_not_read(batch):
    model = student(dtype=torch.float32)
    expected = model.loss(*batch)
    keep_copies(model, BF16)
    assert torch.equal(model.loss(*batch), expected)
    model.double()
    images, mask, target = batch
    assert model.loss(images.double(), mask, target.double()).dtype == torch.float64


def test_a_functional_call_uses_the_weights_it_is_given(batch):
    model, other = student(0), student(1)
    keep_copies(model, BF16)
    expected = features(other, batch[0])
    weights = {k: v.detach() for k, v in other.state_dict().items()}
    own = features(model, batch[0])

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model.forward_features(images)

    named = {f"model.{k}": v for k, v in weights.items()}
    with torch.no_grad():
        found = torch.func.functional_call(Features(), named, (batch[0],))
    assert torch.equal(found, expected)
    assert torch.equal(features(model, batch[0]), own)


def test_a_copied_model_has_no_part_in_them(batch):
    model = student()
    keep_copies(model, BF16)
    expected = features(model, batch[0])
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    assert torch.equal(features(twin, batch[0]), expected)


def test_compiled_after_copies_were_kept(batch):
    """A compiled graph rounds the weights itself, so it follows them."""
    model, other = student(0), student(1)
    keep_copies(model, BF16)
    torch._dynamo.reset()
    run = torch.compile(model.forward_features, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(run(batch[0]), features(model, batch[0]))
        model.load_state_dict(other.state_dict())
        assert torch.equal(run(batch[0]), features(other, batch[0]))


def test_meta_tensors():
    with torch.device("meta"):
        model = eva_fast.create_model(**SIZES, compute_dtype=BF16)
        copies = keep_copies(model, BF16)
        assert all(kept.is_meta for kept in copies.values())
        mask = torch.empty(2, 6, dtype=torch.int32)
        loss = model.loss(torch.empty(2, 3, 32, 32), mask, torch.empty(12, 20))
    loss.backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


def test_fake_tensors():
    from torch._subclasses.fake_tensor import FakeTensorMode

    model = eva_fast.create_model(**SIZES, compute_dtype=BF16)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for module in model.modules():
            for name, p in module.named_parameters(recurse=False):
                setattr(module, name, torch.nn.Parameter(mode.from_tensor(p.detach())))
        optimizer = make_optimizer(model, copies=keep_copies(model, BF16))
        for _ in range(2):
            mask = torch.zeros(2, 6, dtype=torch.int32)
            model.loss(torch.empty(2, 3, 32, 32), mask, torch.empty(12, 20)).backward()
            optimizer.step()


def test_a_step_of_the_optimiser_alone_keeps_any_tensor():
    """`copies` may hold tensors that no layer knows."""
    p = torch.nn.Parameter(torch.randn(4, 4))
    own = torch.zeros(4, 4, dtype=BF16)
    optimizer = ops.FusedAdamW([p], copies={p: own})
    p.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(own, p.bfloat16())


def test_copies_asked_for_in_inference_mode_do_not_keep_a_step_from_training(batch):
    model, (images, mask, target) = student(), batch
    with torch.inference_mode():
        assert keep_copies(model, BF16) == {}
    model.loss(images, mask, target).backward()
    assert model.blocks[0].mlp.fc1.weight.grad is not None
