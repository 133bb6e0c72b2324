"""The cost model: hand arithmetic on a device of round numbers, plans, and what it refuses."""

import json
from collections import Counter

import pytest
import torch

from eva_fast.model import ModelSizes, create_model, sizes_of
from eva_fast.ops.largest import PARTS
from eva_fast.planning import cpu
from eva_fast.planning.counter import count_step
from eva_fast.planning.cpu import measure_cpu
from eva_fast.planning.devices import DEVICES, Device, Rate
from eva_fast.planning.memory import block_bytes, estimate
from eva_fast.planning.network import exposed_seconds, ring_seconds
from eva_fast.planning.planner import plan
from eva_fast.planning.roofline import (
    operator_seconds,
    optimizer_seconds,
    predict_step,
    quantise_seconds,
)
from eva_fast.planning.students import model_flops, parameter_count
from eva_fast.planning.tables import to_text

GIANT = sizes_of("eva_g_patch14_224")
SMALL = ModelSizes(
    img_size=64, patch_size=16, embed_dim=96, depth=3, num_heads=3, mlp_hidden=160, predict_dim=40
)
ROUND = Device(
    name="round",
    title="a device of round numbers",
    kind="cuda",
    memory_bytes=10**9,
    peak_flops={"float16": 1e12},
    gemm={"float16": Rate(((1, 0.5e12),))},
    attention={"float16": Rate(((1, 0.25e12),))},
    stream=Rate(((1, 1e9),)),
    resident=Rate(((1, 2e9),)),
    launch_seconds=1e-6,
    host_seconds=0.0,
)


def test_rate_is_straight_between_points_in_log_log():
    rate = Rate(((10.0, 1.0), (1000.0, 100.0)))
    assert rate.at(1) == 1.0
    assert rate.at(100) == pytest.approx(10.0)
    assert rate.at(1e6) == 100.0


def test_operator_takes_the_longer_of_arithmetic_and_memory():
    operators = count_step("tuned", SMALL, 2).operators
    seconds = [operator_seconds(op, ROUND, "float16") for op in operators]
    for op, found in zip(operators, seconds, strict=True):
        rate = 0.25e12 if op.flash else 0.5e12
        assert found == pytest.approx(max(op.flops / rate, op.bytes / 1e9) + 1e-6)
    step = predict_step(count_step("tuned", SMALL, 2), ROUND)
    assert step.seconds == pytest.approx(sum(seconds))
    assert step.mfu == pytest.approx(step.model_flops / step.seconds / 1e12)
    assert step.summary()["kind"] == "predicted"


def test_model_flops_are_the_official_steps():
    assert model_flops(GIANT, 32, 105) == count_step("official", GIANT, 32).flops
    assert model_flops(SMALL, 3, 7) == count_step("official", SMALL, 3, masked=7).flops


def test_parameters_by_hand():
    assert parameter_count(GIANT) == 1_012_229_632
    with torch.device("meta"):
        model = create_model("eva_ti_patch16_96", predict_dim=33)
    assert parameter_count(model.sizes) == sum(p.numel() for p in model.parameters())


def test_memory_of_the_giant():
    """16 bytes a parameter in mixed precision; ZeRO-2 over 8 spreads all but the weights in use."""
    count = count_step("tuned", GIANT, 32)
    alone = estimate(count, DEVICES["h100"])
    n = parameter_count(GIANT)
    assert (alone.weights, alone.master, alone.gradients, alone.optimizer) == (
        2 * n,
        4 * n,
        2 * n,
        8 * n,
    )
    assert alone.activations == count.saved_bytes
    spread = estimate(count, DEVICES["h100"], sharding="zero2", gpus=8)
    assert alone.total - spread.total == pytest.approx(14 * n * 7 / 8, rel=1e-6)
    full = estimate(count, DEVICES["h100"], sharding="full", gpus=128)
    hybrid = estimate(count, DEVICES["h100"], sharding="hybrid", gpus=128)
    assert full.total < hybrid.total < spread.total
    assert hybrid == estimate(count, DEVICES["h100"], sharding="full", gpus=8)


def test_checkpointing_keeps_block_inputs_and_one_block():
    """tuned: one tensor a block; eva_fast: a residual and a branch that is yet to be added."""
    for formulation, tensors in (("tuned", 1), ("eva_fast", 2)):
        kept = count_step(formulation, GIANT, 32, recompute=1.0).saved_bytes
        inputs = 40 * tensors * 32 * 257 * 1408 * 2
        block = block_bytes(formulation, GIANT, 32)
        assert inputs < kept < inputs + block
        whole = count_step(formulation, GIANT, 32).saved_bytes
        assert 38 * block < whole < 42 * block


def test_ring_moves_all_but_one_share():
    h100 = DEVICES["h100"]
    assert ring_seconds(10**9, 1, h100) == 0.0
    assert ring_seconds(10**9, 8, h100) == pytest.approx(7 / 8 / (450 * 0.8) + 20e-6)
    wire, exposed = exposed_seconds(10**9, 2, 8, h100, "none", backward_seconds=10.0)
    assert wire > 0 and exposed == 0.0
    assert exposed_seconds(10**9, 2, 8, h100, "none", 0.0)[1] == wire


def test_optimizer_passes():
    assert optimizer_seconds("eva_fast", 10**9, ROUND, "float16") == pytest.approx(15)
    assert optimizer_seconds("tuned", 10**9, ROUND, "float32") == pytest.approx(20)


def test_quantising_weights_in_fp8():
    """One process does it once a step, each of several in every pass and in every block that is
    computed again, however the state is sharded."""
    assert quantise_seconds(10**9, ROUND, False) == pytest.approx(3.5)
    assert quantise_seconds(10**9, ROUND, True) == pytest.approx(3.5)

    def planned(gpus, **options):
        small = dict(model="eva_ti_patch16_96", batch_size=8 * gpus, images=1e5, precision="fp8")
        return plan(gpus=gpus, **small, **options)

    def quantising(found):
        return {
            (o.micro_batch, o.checkpointing): o.prediction.parts["quantise"] for o in found.options
        }

    one, shared = planned(1), quantising(planned(2, sharding="replicate"))
    for sharding in ("zero2", "full", "hybrid"):
        assert quantising(planned(2, sharding=sharding)) == shared
    once = quantise_seconds(one.count.parameters, DEVICES["h100"], True)
    for (micro, checkpointing), alone in quantising(one).items():
        extra = shared[micro, checkpointing] - alone
        assert extra == pytest.approx(once * (8 // micro * (1 + checkpointing) - 1))


_EVA = dict(model="eva_g_patch14_224", teacher="openai/ViT-L-14", batch_size=4096, images=29.6e6)


def test_plan_of_eva01():
    found = plan(gpus=128, formulation="tuned", precision="fp16", **_EVA)
    assert found.best is not None and found.best.micro_batch == 32 and not found.best.checkpointing
    quickest = max(found.options, key=lambda o: o.images_per_second(128))
    assert found.best is quickest
    days = 150 * 29.6e6 / found.best.images_per_second(128) / 86400
    assert found.days == pytest.approx(days, rel=1e-3)  # the last epoch ends with a whole step
    data = json.loads(json.dumps(found.to_dict()))
    assert data["batch_size"] == 4096 and data["teacher"] == "openai/ViT-L-14"
    assert data["fits"] and data["predicted"]["kind"] == "predicted"
    assert data["counted"]["tflop_per_image"] == pytest.approx(1.610, abs=5e-4)
    text = to_text(found)
    assert (
        "predicted" in text and "counted" in text and "for 150 epochs of 29,600,000 images" in text
    )


@pytest.mark.parametrize(
    ("batch", "cuts"), [(32, [32, 16, 8, 4, 2, 1]), (90, [90, 45, 18, 9, 3, 1]), (7, [7, 1])]
)
def test_cuts_divide_the_batch_down_to_single_images(batch, cuts):
    assert [o.micro_batch for o in plan(gpus=2, batch_size=2 * batch, **_CUT).options[::2]] == cuts


_CUT = dict(model="eva_ti_patch16_96", formulation="tuned", images=1e6)


def test_more_memory_never_fits_less():
    small = {o.micro_batch: o.fits for o in plan("a100-40", **_TUNED).options}
    large = {o.micro_batch: o.fits for o in plan("h200", **_TUNED).options}
    assert all(large[m] or not small[m] for m in small)


_TUNED = dict(_EVA, gpus=8, batch_size=1024, formulation="tuned", require_fit=False)


def test_checkpointing_saves_memory_and_costs_time():
    options = plan("a100-80", **_TUNED).options
    for plain, again in zip(options[::2], options[1::2], strict=True):
        assert again.memory.total < plain.memory.total
        assert again.prediction.seconds >= plain.prediction.seconds


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(hardware="v100"), "unknown device 'v100': one of cpu, a100-40"),
        (dict(batch_size=0), "batch_size must be at least 1"),
        (dict(gpus=0), "gpus must be at least 1"),
        (dict(gpus=3), "not a multiple of 3 GPUs"),
        (dict(model="resnet50"), "unknown model 'resnet50'"),
        (dict(precision="int8"), "precision must be one of"),
        (
            dict(hardware="a100", precision="fp8", formulation="eva_fast"),
            "no float8 rate for A100 SXM 80 GB",
        ),
        (dict(formulation="tuned", precision="fp8"), "counted for eva_fast alone"),
        (dict(sharding="zero3"), "sharding must be one of"),
        (dict(formulation="jax"), "unknown formulation 'jax'"),
        (dict(epochs=0), "must be above 0"),
        (dict(images=0), "images must be above 0"),
        (dict(images=float("nan")), "images must be above 0, got nan"),
        (dict(images="many"), "images must be of type float, got 'many'"),
        (dict(batch=4096), "unknown option 'batch'; did you mean"),
        (dict(gpus=2, accumulate=64), "not a multiple of accumulate 64"),
        (dict(teacher="hf/some/one"), "not known without its weights"),
        (dict(objective="mine"), "unknown objective 'mine'"),
        (dict(hardware="cpu", gpus=2), "gpus must be 1"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_bad_use(options, says, monkeypatch):
    monkeypatch.setattr(cpu, "measure_cpu", lambda threads, own: ROUND_CPU)
    with pytest.raises(ValueError, match=says):
        plan(**{"formulation": "tuned", **options})


ROUND_CPU = Device(
    name="cpu",
    title="a round CPU",
    kind="cpu",
    memory_bytes=10**9,
    peak_flops={"float32": 1e11},
    gemm={"float32": Rate(((1, 1e11),))},
    attention={"float32": Rate(((1, 1e10),))},
    stream=Rate(((1, 1e10),)),
    resident=Rate(((1, 1e10),)),
    launch_seconds=1e-6,
    host_seconds=0.0,
)


def test_a_model_that_cannot_fit_says_what_it_needs(monkeypatch):
    monkeypatch.setattr(cpu, "measure_cpu", lambda threads, own: ROUND_CPU)
    with pytest.raises(ValueError, match=r"does not fit on a round CPU \(1 GB\).*optimizer 8\.1"):
        plan("cpu", **{**_EVA, "batch_size": 4}, formulation="tuned")


def test_measured_cpu_has_sane_rates():
    found = measure_cpu(torch.get_num_threads())
    assert found.measured and found.kind == "cpu"
    assert all(1e8 < rate < 1e14 for _, rate in found.gemm["float32"].points)
    assert all(1e7 < rate < 1e13 for _, rate in found.stream.points)


def test_the_run_is_shown_as_asked_beside_the_quickest():
    asked = dict(_EVA, batch_size=128, accumulate=2, grad_checkpointing=True)
    found = plan("h100", grad_checkpointing_share=0.5, **asked)
    assert (found.asked.micro_batch, found.asked.accumulate) == (64, 2)
    assert found.asked.flags == (
        "--accumulate 2 --grad-checkpointing --grad-checkpointing-share 0.5"
    )
    assert found.best is not None and found.best.flags == "--accumulate 1"
    assert found.asked.memory.total < found.best.memory.total
    assert found.asked.prediction.seconds > found.best.prediction.seconds
    text = to_text(found)
    assert f"as asked ({found.asked.flags})" in " ".join(text.split())
    assert "pretrain runs on one GPU so far" not in text


def test_without_a_word_it_is_the_run_without_a_word():
    """The drawings, the first student and the packed teacher, as `pretrain()` takes them."""
    found = plan()
    assert (found.sizes.depth, found.sizes.patch_size, found.sizes.predict_dim) == (6, 12, 96)
    assert (found.teacher, found.precision, found.batch) == ("builtin", "bf16", 64)
    steps = found.epochs * found.images / found.batch
    assert steps == pytest.approx(5 * (found.images // 64)) and found.images > 1000
    assert plan(images=5e5).epochs == pytest.approx(150, rel=1e-3)
    assert plan(images=640, steps=20).epochs == 2


def test_sharding_is_the_runs():
    """Small models are replicated; a giant is sharded, beyond one machine within each."""
    found = {n: plan(gpus=n, **{**_EVA, "batch_size": 4096}).sharding for n in (1, 8, 128)}
    assert found == {1: "replicate", 8: "full", 128: "hybrid"}
    assert plan(gpus=8, images=1e5).sharding == "replicate"


def test_an_average_of_the_weights_takes_memory():
    plain, averaged = plan(**_EVA), plan(ema=0.999, **_EVA)
    extra = averaged.asked.memory.total - plain.asked.memory.total
    assert extra == averaged.asked.memory.ema == 4 * parameter_count(GIANT)


def test_fp8_is_bfloat16_with_other_products():
    """The blocks' products at half the bytes of their operands and twice the peak. Norm and GELU write
    8 bits themselves; quantised apart are the gradients that come from elsewhere, and attention's
    output; all else are the same operators."""
    sizes = ModelSizes(
        img_size=64,
        patch_size=16,
        embed_dim=96,
        depth=3,
        num_heads=3,
        mlp_hidden=160,
        predict_dim=40,
    )
    plain, eight = (
        count_step("eva_fast", sizes, 16, dtype=dtype)
        for dtype in (torch.bfloat16, torch.float8_e4m3fn)
    )
    assert plain.flops == eight.flops  # rows are multiples of 16
    assert eight.saved_bytes == plain.saved_bytes + 3 * 4 * 4  # the scales of activations
    products = [op for op in eight.operators if op.name == "eva_fast::fp8_gemm"]
    # 4 Linears forward and twice back; of the last qkv, q apart from k and v
    assert len(products) == 3 * (4 * 2 + 5) and {op.dtype for op in products} == {"float8_e4m3fn"}
    rest = [
        [op.name for op in count.operators if op.part not in ("gemm", "quantise")]
        for count in (plain, eight)
    ]
    assert Counter(rest[0]) == Counter(name.replace("_fp8", "") for name in rest[1])
    tokens, width, hidden = 16 * 17, 96, 160
    fc1 = next(op for op in products if op.flops == 2 * tokens * width * hidden)
    assert fc1.bytes == tokens * width + width * hidden + 2 * tokens * hidden + 2 * 4
    y = next(op for op in eight.operators if op.name == "eva_fast::add_layer_norm_fp8")
    parameters, statistics = 2 * 2 * width, 2 * 4 * tokens  # counted with 16-bit parameters
    assert y.bytes == (2 + 1) * tokens * width + parameters + statistics + 4
    dh = [op for op in eight.operators if op.name == "eva_fast::bias_gelu_fp8_backward"][-1]
    singles, bias = 4 * 4, 2 * 2 * hidden
    assert dh.bytes == (2 + 2 + 3) * tokens * hidden + singles + bias
    quantised = [op for op in eight.operators if op.name == "eva_fast::quantise_fp8"]
    masked = 3  # of the last attention y and its rows, out; back again y twice and out, dq, dkv
    forward = [op for op in quantised if op.phase == "forward"]
    assert len(forward) == masked
    # the scale is not looked for where another branch's norm wrote the gradient: of the first two
    # attentions and the first MLP here
    once = tokens * width * (2 + 1 + 1) + 4 + 4 * min(tokens, PARTS)
    assert sum(op.bytes == once for op in quantised) == 3
    # fc2's and proj's gradients, and of qkv
    assert len(quantised) - len(forward) == 3 * 2 + 2 + 2 + 3
