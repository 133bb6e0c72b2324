"""The counter: the giant's figures, hand arithmetic, the same count on real tensors."""

from dataclasses import replace

import pytest
import torch

from eva_fast.baselines import OfficialViT, TunedViT
from eva_fast.layers import keep_copies
from eva_fast.model import EvaViT, ModelSizes, sizes_of
from eva_fast.planning.counter import Recorder, count_step, count_step_at

GIANT = sizes_of("eva_g_patch14_224")
SMALL = ModelSizes(
    img_size=64, patch_size=16, embed_dim=96, depth=3, num_heads=3, mlp_hidden=160, predict_dim=40
)


@pytest.mark.parametrize(
    ("formulation", "tflop", "gb", "mb", "launches"),
    [("official", 1.602, 8.76, 857, 2904), ("tuned", 1.610, 3.91, 487, 1248)],
    ids=["official", "tuned"],
)
def test_giant_at_batch_32(formulation, tflop, gb, mb, launches):
    count = count_step(formulation, GIANT, 32).summary()
    assert round(count["tflop_per_image"], 3) == tflop
    assert round(count["gb_touched_per_image"], 2) == gb
    assert round(count["mb_saved_per_image"]) == mb
    assert count["launches"] == launches
    assert round(count["gemm_gb_per_image"], 2) == 1.65


def test_fused_giant_stays_within_its_budget():
    count = count_step("eva_fast", GIANT, 32)
    found = count.summary()
    assert found["tflop_per_image"] <= 1.590
    assert found["gb_touched_per_image"] <= 3.3105
    assert found["mb_saved_per_image"] <= 299
    assert found["launches"] <= 869
    assert found["kernels"] < count_step("tuned", GIANT, 32).total("kernels")


def test_fused_flops_are_the_tuned_ones_less_what_the_last_block_leaves_out():
    """Queries, projection and MLP of tokens that no loss needs: so no operator hides its FLOPs."""
    d, h, tokens, needed = GIANT.embed_dim, GIANT.mlp_hidden, 257, 105
    linear = 3 * 2 * (tokens - needed) * (2 * d * d + 2 * d * h)
    attention = 7 * 2 * (tokens - needed) * tokens * d
    tuned = count_step("tuned", GIANT, 32).flops
    assert tuned - count_step("eva_fast", GIANT, 32).flops == 32 * (linear + attention)


@pytest.mark.parametrize("formulation", ["official", "tuned"])
def test_flops_by_hand(formulation):
    """Three times the forward's products, less the patch embedding's input gradient; flash
    attention pays one of its two forward products once more in the backward."""
    batch, masked = 2, 5
    d, h, n = SMALL.embed_dim, SMALL.mlp_hidden, SMALL.num_patches
    t = n + 1
    linear = 2 * batch * t * (4 * d * d + 2 * d * h) * SMALL.depth
    attention = 2 * 2 * batch * t * t * d * SMALL.depth
    embed = 2 * batch * n * 3 * SMALL.patch_size**2 * d
    head = 2 * batch * masked * d * SMALL.predict_dim
    recomputed = attention / 2 if formulation == "tuned" else 0
    expected = 3 * (linear + attention + head) + 2 * embed + recomputed
    assert count_step(formulation, SMALL, batch, masked=masked).flops == expected


@pytest.mark.parametrize("kind", [OfficialViT, TunedViT], ids=["official", "tuned"])
def test_real_tensors_run_the_operators_that_meta_tensors_count(kind):
    masked, batch = 5, 2
    name = "official" if kind is OfficialViT else "tuned"
    counted = count_step(name, SMALL, batch, masked=masked, dtype=torch.float32, device="cpu")
    model = kind(SMALL)
    mask = torch.zeros(batch, SMALL.num_patches, dtype=torch.bool)
    mask[:, 3 : 3 + masked] = True
    target = torch.randn(batch * masked, SMALL.predict_dim)
    images = torch.randn(batch, 3, 64, 64)
    inputs = model.inputs(mask)
    recorder = Recorder(masked * batch)
    with recorder:
        loss = model.loss(target, images, *inputs)
        recorder.phase = "backward"
        loss.backward()
    assert [(o.phase, o.name) for o in recorder.operators] == [
        (o.phase, o.name) for o in counted.operators
    ]
    assert [o.flops for o in recorder.operators] == [o.flops for o in counted.operators]
    off = {
        a.name
        for a, b in zip(recorder.operators, counted.operators, strict=True)
        if a.bytes != b.bytes
    }
    # A boolean mask stays itself in the real operator and becomes row numbers in the count.
    assert off <= {"index", "index_put"}


def test_fused_step_runs_on_real_tensors_what_meta_tensors_count():
    masked, batch = 5, 2
    options = dict(masked=masked, dtype=torch.float32, device="cpu")
    counted = count_step("eva_fast", SMALL, batch, **options)
    torch.manual_seed(0)
    model = EvaViT(SMALL, kernels="auto")
    keep_copies(model, torch.float32)
    images = torch.randint(0, 256, (batch, 3, 64, 64), dtype=torch.uint8)
    mask = torch.arange(masked, dtype=torch.int32).repeat(batch, 1)
    target = torch.randn(batch * masked, SMALL.predict_dim)
    recorder = Recorder()
    with recorder:
        loss = model.loss(images, mask, target)
        recorder.phase = "backward"
        loss.backward()
    # A CPU's matrix products go through the project's own operator, a GPU's through the library.
    names = {"mm": "eva_fast::gemm", "addmm": "eva_fast::gemm"}
    assert [(o.phase, o.name) for o in recorder.operators] == [
        (o.phase, names.get(o.name, o.name)) for o in counted.operators
    ]
    assert [o.flops for o in recorder.operators] == [o.flops for o in counted.operators]
    assert [o.bytes for o in recorder.operators] == [o.bytes for o in counted.operators]


def test_attention_is_flash_on_both_devices():
    for device, word in (("cuda", ""), ("cpu", "_for_cpu")):
        names = {o.name for o in count_step("tuned", SMALL, 2, device=device).operators}
        assert f"_scaled_dot_product_flash_attention{word}" in names
        assert f"_scaled_dot_product_flash_attention{word}_backward" in names
        assert "_softmax" not in names and "bmm" not in names


@pytest.mark.parametrize("formulation", ["official", "tuned"])
def test_any_batch_from_two_counts(formulation):
    direct = count_step(formulation, SMALL, 7)
    line = count_step_at(formulation, SMALL, 7)
    assert line.operators == direct.operators
    assert line.saved_bytes == direct.saved_bytes


def test_saved_activations_of_one_linear_path():
    """One block more keeps what its backward needs: counted by hand for the tuned formulation."""
    batch, t, d, h = 2, SMALL.num_patches + 1, SMALL.embed_dim, SMALL.mlp_hidden
    two, three = (
        count_step("tuned", replace(SMALL, depth=n), batch, dtype=torch.float16) for n in (2, 3)
    )
    rows = batch * t
    half = rows * (
        2 * d  # the residual stream before each norm
        + 2 * d  # both norms' outputs
        + 3 * d  # q, k, v
        + d  # attention's output
        + 2 * h  # fc1's output and its GELU
    )
    single = 4 * rows + SMALL.num_heads * rows  # mean and rstd of both norms, log-sum-exp
    rng = 3 * 8  # flash attention's random state, unused without dropout
    assert three.saved_bytes - two.saved_bytes == 2 * half + 4 * single + rng


def test_forward_alone_keeps_nothing():
    count = count_step("official", SMALL, 2, backward=False)
    assert count.saved_bytes == 0
    assert count.total("launches", phase="backward") == 0
    assert 0 < count.flops < count_step("official", SMALL, 2).flops / 2


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: count_step("apex", SMALL, 2), "unknown formulation 'apex'"),
        (lambda: count_step("tuned", SMALL, 0), "at least 1 image"),
        (lambda: count_step_at("tuned", SMALL, 0), "at least 1 image"),
        (lambda: count_step("tuned", SMALL, 2, masked=17), "1 to 16 patches"),
    ],
    ids=["formulation", "batch", "batch-line", "masked"],
)
def test_bad_use(call, says):
    with pytest.raises(ValueError, match=says):
        call()
