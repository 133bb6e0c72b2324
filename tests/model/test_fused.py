"""The fused student against the official code's outputs and against the plain formulation."""

import copy

import pytest
import torch

from eva_fast import ops
from eva_fast.baselines import OfficialViT
from eva_fast.layers import Stream
from eva_fast.model import create_model, head
from eva_fast.model.sizes import sizes_of
from eva_fast.train.guard import Guard
from eva_fast.train.optimizer import gradient_norm

MICRO = dict(
    img_size=56, patch_size=14, embed_dim=64, depth=3, num_heads=4, mlp_hidden=279, predict_dim=32
)
ODD = dict(
    img_size=48, patch_size=12, embed_dim=176, depth=2, num_heads=2, mlp_hidden=279, predict_dim=20
)


def pair(sizes, **options):
    """A plain student and a fused one with the same random weights."""
    torch.manual_seed(0)
    plain = create_model(**sizes, kernels="torch", **options)
    with torch.no_grad():
        for p in plain.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    other = create_model(**sizes, kernels="auto", **options)
    other.load_official(plain.state_dict())
    return plain, other


def batch(sizes, count, size=3, bytes_=False):
    side, patches = sizes["img_size"], (sizes["img_size"] // sizes["patch_size"]) ** 2
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8)
    mask = torch.rand(size, patches).argsort(1)[:, :count].sort(1).values.to(torch.int32)
    target = torch.randn(size * count, sizes["predict_dim"])
    return images if bytes_ else torch.randn(size, 3, side, side), mask, target


def test_official_outputs(eva_micro, kernels):
    tensors, _ = eva_micro
    model = create_model(**MICRO, kernels="auto")
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    images, mask = tensors["image"], tensors["mask"].flatten(1).bool()
    prediction = model(images, mask)
    torch.testing.assert_close(
        prediction, tensors["prediction"].view_as(prediction), rtol=0, atol=1e-5
    )
    torch.testing.assert_close(
        model.forward_features(images, mask), tensors["features"], rtol=0, atol=1e-5
    )
    loss = model.loss(images, mask, tensors["target"].view_as(prediction))
    assert abs(loss.item() - tensors["loss"].item()) < 1e-5
    loss.backward()
    for name, p in model.named_parameters():
        expected = tensors[f"grad.{name}"]
        assert (p.grad - expected).norm() <= 1e-4 * expected.norm() + 1e-12, name


def test_official_training_curve(eva_micro, eva_micro_groups, kernels):
    """20 steps of AdamW on one batch, with the official groups, learning rates and clipping."""
    tensors, _ = eva_micro
    model = create_model(**MICRO, kernels="auto")
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    decayed, plain = [], []
    for name, p in model.named_parameters():
        free = p.ndim == 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        (plain if free else decayed).append(p)
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = ops.FusedAdamW(groups, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05)
    images, mask = tensors["image"], tensors["mask"].flatten(1).bool()
    target = tensors["target"].reshape(-1, MICRO["predict_dim"])
    # an interpreted step takes many seconds: the first few, through the kernels of all its parts
    rates = tensors["lr"].tolist()[: 3 if kernels == "triton" else None]
    guard = Guard(images.device, scaled=False)
    for step, lr in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = lr
        loss = model.loss(images, mask, target)
        optimizer.zero_grad()
        loss.backward()
        norm = gradient_norm(model.parameters())
        guard.step(optimizer, loss.detach(), norm, clip=3.0)
        assert abs(loss.item() - tensors["losses"][step].item()) < 1e-4
        assert abs(norm.item() - tensors["grad_norms"][step].item()) < 1e-4
    if kernels == "triton":
        return
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), tensors[f"after.{name}"], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("sizes", [MICRO, ODD], ids=["micro", "odd"])
@pytest.mark.parametrize("as_bytes", [False, True], ids=["floats", "bytes"])
def test_same_as_plain(sizes, as_bytes, kernels):
    plain, other = pair(sizes)
    images, mask, target = batch(sizes, 5, bytes_=as_bytes)
    torch.testing.assert_close(
        other.forward_features(images), plain.forward_features(images), rtol=0, atol=2e-5
    )
    expected = plain.loss(images, mask, target)
    found = other.loss(images, mask, target)
    assert abs(found.item() - expected.item()) < 1e-6
    expected.backward()
    found.backward()
    wanted = {name: p.grad for name, p in plain.named_parameters()}
    for name, p in other.named_parameters():
        error = (p.grad - wanted[name]).norm()
        assert error <= 1e-4 * wanted[name].norm() + 1e-9, name


def test_drop_path_draws_the_same_numbers():
    plain, other = pair(MICRO, drop_path=0.5)
    images, mask, target = batch(MICRO, 5, size=8)
    torch.manual_seed(3)
    expected = plain.loss(images, mask, target)
    torch.manual_seed(3)
    found = other.loss(images, mask, target)
    assert abs(found.item() - expected.item()) < 1e-6
    expected.backward()
    found.backward()
    error = (other.patch_embed.proj.weight.grad - plain.patch_embed.proj.weight.grad).norm()
    assert error <= 1e-4 * plain.patch_embed.proj.weight.grad.norm()


def test_loss_curve_of_50_steps(kernels):
    if kernels == "triton":
        pytest.skip("100 interpreted steps would take a quarter of an hour")
    plain, other = pair(MICRO, drop_path=0.1)
    curves = []
    for model in (plain, other):
        torch.manual_seed(1)
        optimizer = (torch.optim.AdamW if model is plain else ops.FusedAdamW)(
            model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.05
        )
        batches = [batch(MICRO, 6, size=4, bytes_=True) for _ in range(5)]
        losses = []
        for step in range(50):
            loss = model.loss(*batches[step % 5])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < curves[0][0] - 0.05  # it learns
    assert max(abs(a - b) for a, b in zip(*curves)) < 1e-3


@pytest.mark.parametrize("how", ["compute_dtype", "autocast"])
def test_bfloat16_arithmetic(how):
    """Parameters and gradients stay float32; the numbers are those of float32 to bfloat16's 8 bits."""
    plain, _ = pair(MICRO)
    dtype = torch.bfloat16 if how == "compute_dtype" else torch.float32
    other = create_model(**MICRO, kernels="auto", compute_dtype=dtype)
    other.load_official(plain.state_dict())
    images, mask, target = batch(MICRO, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        assert other(images, mask).dtype == torch.bfloat16
        loss = other.loss(images, mask, target)
    assert loss.dtype == torch.float32
    loss.backward()
    expected = plain.loss(images, mask, target)
    expected.backward()
    assert abs(loss.item() - expected.item()) < 5e-3
    flat = [torch.cat([p.grad.flatten() for p in m.parameters()]) for m in (other, plain)]
    assert flat[0].dtype == torch.float32
    assert (flat[0] - flat[1]).norm() < 0.05 * flat[1].norm()


def test_activations_kept_for_the_backward():
    """At most 0.45 of what the official formulation keeps, in float32 on a CPU."""
    sizes = sizes_of("eva_s_patch14_224", predict_dim=768)
    official = OfficialViT(sizes, drop_path=0.1)
    ours = create_model("eva_s_patch14_224", predict_dim=768, drop_path=0.1, kernels="auto")
    images = torch.randn(1, 3, 224, 224)
    mask = torch.zeros(1, 256, dtype=torch.bool)
    mask[:, torch.randperm(256)[:105]] = True
    target = torch.randn(105, 768)

    def kept(model, run):
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        storages = {}

        def pack(t):
            storage = t.untyped_storage()
            if storage.data_ptr() not in own:
                storages[storage.data_ptr()] = storage
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = run()
        assert loss.requires_grad
        return sum(s.nbytes() for s in storages.values())

    plain = kept(official, lambda: official.loss(target, images, mask))
    found = kept(ours, lambda: ours.loss(images, mask, target))
    assert found <= 0.45 * plain


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_both_heads_give_the_same(dtype):
    """With a pending branch, its bias, drop-path's factors and, in bf16, a copy of the weight."""
    torch.manual_seed(0)
    model = create_model(**MICRO, kernels="auto", compute_dtype=dtype)
    x, branch = (torch.randn(3, 5, 64, dtype=dtype).requires_grad_() for _ in range(2))
    bias = torch.randn(64).requires_grad_()
    stream = Stream(x, branch, bias, torch.tensor([0.0, 1.25, 1.25]))
    target = torch.randn(15, MICRO["predict_dim"])
    leaves = (x, branch, bias, *model.norm.parameters(), *model.lm_head.parameters())
    found = []
    for loss_of in (head.composed_loss, head.fused_loss):
        loss = loss_of(model.lm_head, stream, model.norm, target)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(*found, strict=True):
        assert a.dtype == b.dtype and a.norm() > 0
        assert (a - b).norm() <= tolerance * a.norm()


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("auto", "composed"), ("torch", "composed"), ("native", "composed"), ("triton", "fused")],
)
def test_the_head_that_a_mode_takes(monkeypatch, mode, expected):
    taken, real = [], head.composed_loss
    for name in ("composed", "fused"):
        monkeypatch.setattr(
            head, f"{name}_loss", lambda *a, name=name: taken.append(name) or real(*a)
        )
    monkeypatch.setattr("eva_fast.ops.choose.demanded", lambda op: None if mode == "auto" else mode)
    create_model(**MICRO).loss(*batch(MICRO, 5))
    assert taken == [expected]


def test_compiled_equals_eager():
    model = create_model(**MICRO, kernels="auto")
    images, mask, target = batch(MICRO, 5, bytes_=True)
    expected = model.loss(images, mask, target)
    expected.backward()
    gradients = copy.deepcopy({k: p.grad for k, p in model.named_parameters()})
    model.zero_grad()
    torch._dynamo.reset()
    run = torch.compile(lambda *a: model.loss(*a), fullgraph=True, backend="aot_eager")
    found = run(images, mask, target)
    found.backward()
    assert torch.equal(found, expected)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, gradients[name], rtol=1e-6, atol=1e-8)


def test_target_of_another_shape():
    model = create_model(**MICRO, kernels="auto")
    images, mask, target = batch(MICRO, 5)
    with pytest.raises(ValueError, match=r"target has shape \(15, 31\)"):
        model.loss(images, mask, target[:, :31])
