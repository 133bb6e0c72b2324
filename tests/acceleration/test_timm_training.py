"""timm's own training code, unchanged, on an accelerated model."""

import copy
import io

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

import eva_fast
from tests.acceleration.comparing import assert_same, pair, randomised

SMALL = {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 32, "num_classes": 5}


def network(name="deit3_base_patch16_224", **options):
    return timm.create_model(name, **{**SMALL, **options})


def batches(count, side=32):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield (
            torch.randn(4, 3, side, side, generator=generator),
            torch.randint(0, 5, (4,), generator=generator),
        )


def train(model, steps, optimizer="momentum", autocast=False, run=None):
    """timm's loop: optimiser, schedule, exponential mean. Returns losses and the mean's state."""
    optimizer = create_optimizer_v2(model, opt=optimizer, lr=1e-2, weight_decay=0.05)
    scheduler = CosineLRScheduler(optimizer, t_initial=steps, warmup_t=2, warmup_lr_init=1e-4)
    mean = ModelEmaV3(model, decay=0.9)
    run = model if run is None else run
    model.train()
    losses = []
    torch.manual_seed(0)
    for step, (images, labels) in enumerate(batches(steps)):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = F.cross_entropy(run(images).float(), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        mean.update(model, step=step)
        scheduler.step(step + 1)
        losses.append(loss.item())
    return torch.tensor(losses), mean.module.state_dict()


def test_a_training_loop_gives_the_same_losses_weights_and_mean():
    plain, fused = pair(network(drop_path_rate=0.4))
    losses, mean = train(plain, 5)
    found, found_mean = train(fused, 5)
    torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-6)
    for state, other in ((fused.state_dict(), plain.state_dict()), (found_mean, mean)):
        assert state.keys() == other.keys()
        for name, value in other.items():
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_adamw_gives_the_same_losses():
    plain, fused = pair(network())
    torch.testing.assert_close(
        train(fused, 4, "adamw")[0], train(plain, 4, "adamw")[0], rtol=1e-3, atol=1e-4
    )


def test_autocast_rounds_as_much_as_the_library_does():
    """bfloat16 has 8 bits: both are compared with float32, and the accelerated is no further away."""
    model = randomised(network(drop_path_rate=0.4))
    exact = train(copy.deepcopy(model), 4)[0]
    plain = train(copy.deepcopy(model), 4, autocast=True)[0]
    found = train(eva_fast.accelerate(copy.deepcopy(model)), 4, autocast=True)[0]
    assert (found - exact).abs().max() <= 2 * (plain - exact).abs().max() + 1e-3


def test_under_autocast_the_output_has_the_library_s_dtype():
    for name in ("deit3_base_patch16_224", "eva_giant_patch14_224", "vit_small_patch16_dinov3"):
        side = 28 if "14" in name else 32
        plain, fused = pair(network(name, img_size=side))
        images = torch.randn(1, 3, side, side)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert fused.forward_features(images).dtype == plain.forward_features(images).dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_a_model_in_another_dtype(dtype):
    plain, fused = pair(network())
    images = torch.randn(2, 3, 32, 32).to(dtype)
    out, found = plain.to(dtype)(images), fused.to(dtype)(images)
    assert found.dtype == dtype
    tolerance = {torch.bfloat16: 0.05, torch.float64: 1e-12}[dtype]
    assert (found - out).abs().max() <= tolerance * out.abs().max()


def test_compiled_in_one_graph():
    plain, fused = pair(network(depth=1))
    compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
    losses = train(plain, 2)[0]
    torch.testing.assert_close(train(fused, 2, run=compiled)[0], losses, rtol=1e-5, atol=1e-6)


def test_gradient_checkpointing():
    plain, fused = pair(network(drop_path_rate=0.4))
    fused.set_grad_checkpointing()
    plain.train(), fused.train()
    images = next(batches(1))[0]
    assert_same(plain, fused, lambda m: m(images))


def test_other_sizes_of_images():
    plain, fused = pair(network("vit_base_patch14_reg4_dinov2", img_size=28, dynamic_img_size=True))
    for height, width in ((28, 28), (42, 56)):
        images = torch.randn(2, 3, height, width)
        assert_same(plain, fused, lambda m, images=images: m(images))


def test_intermediate_features_and_masks():
    plain, fused = pair(network("vit_base_patch16_224"))
    images = next(batches(1))[0]
    mask = torch.rand(4, 1, 5, 5) > 0.3
    mask |= torch.eye(5, dtype=torch.bool)
    assert_same(plain, fused, lambda m: m.forward_intermediates(images)[1][0])
    assert_same(plain, fused, lambda m: m.forward_features(images, attn_mask=mask))


def test_frozen_parameters_get_no_gradient():
    plain, fused = pair(network())
    for model in (plain, fused):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "blocks.1.attn.qkv" in name or "fc1.bias" in name
    images = next(batches(1))[0]
    assert_same(plain, fused, lambda m: m(images))


def test_dropout_in_training_is_the_library_s_own():
    plain, fused = pair(network(proj_drop_rate=0.3, attn_drop_rate=0.2))
    assert "while training left: dropout of 0.3" in str(fused.eva_fast_report)
    plain.train(), fused.train()
    images = next(batches(1))[0]
    assert_same(plain, fused, lambda m: m(images))
    plain.eval(), fused.eval()
    assert_same(plain, fused, lambda m: m(images))


def test_weights_go_both_ways():
    plain, fused = pair(network())
    other = randomised(network(), seed=5)
    fused.load_state_dict(other.state_dict(), strict=True)
    plain.load_state_dict(fused.state_dict(), strict=True)
    images = next(batches(1))[0]
    assert_same(other, fused, lambda m: m(images))
    assert list(plain.state_dict()) == list(fused.state_dict())


def test_copies_and_pickles_are_accelerated_too():
    _, fused = pair(network())
    images = next(batches(1))[0]
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (copy.deepcopy(fused), torch.load(file, weights_only=False)):
        assert type(other.blocks[0]) is type(fused.blocks[0])
        assert torch.equal(other(images), fused(images))
        assert str(other.eva_fast_report) == str(fused.eva_fast_report)
