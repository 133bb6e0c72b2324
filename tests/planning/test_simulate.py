"""What a simulated step holds and sends is what arithmetic says of it."""

import pytest
import torch
import torch.distributed as dist

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.model import create_model
from eva_fast.planning.planner import plan_simulation
from eva_fast.planning.run import PlannedRun
from eva_fast.planning.teachers import planned_teacher
from eva_fast.world import ALONE, world

SMALL = dict(
    model="eva_ti_patch16_96", depth=4, embed_dim=64, num_heads=2, mlp_hidden=128, batch_size=64,
    teacher="openai/ViT-B-16",
)  # fmt: skip


def simulated(gpus, **options):
    found = plan_simulation(Config.from_options({**SMALL, **options}), gpus)
    assert not dist.is_initialized() and world() is ALONE
    return found


def padded(processes):
    """Elements of all parameters, the first dimension of each a multiple of the processes."""
    sizes = {k: SMALL[k] for k in ("depth", "embed_dim", "num_heads", "mlp_hidden")}
    with torch.device("meta"):
        model = create_model(SMALL["model"], predict_dim=512, **sizes)
    rows = ((p.numel() // len(p), len(p)) for p in model.parameters())
    return sum(-(-first // processes) * processes * width for width, first in rows)


def test_full_sharding_by_hand():
    """Weights are gathered in 16 bits twice a step, gradients are scattered in float32."""
    found, elements = simulated(8, sharding="full"), padded(8)
    assert found.communication["allgather over 8 GPUs"] == {"calls": 10, "bytes": 2 * 2 * elements}
    assert found.communication["reduce_scatter over 8 GPUs"] == {"calls": 5, "bytes": 4 * elements}
    teacher = planned_teacher("openai/ViT-B-16", (6, 6), torch.bfloat16)
    assert found.memory["teacher"] == 2 * teacher.parameters
    assert found.memory["total"] == sum(found.memory.values()) - found.memory["total"]


def test_a_teacher_in_shards_by_hand():
    """An eighth of it in each GPU of a machine, gathered by blocks; all else is as it was."""
    whole, shared = (
        simulated(32, sharding="hybrid", teacher_sharding=how) for how in ("replicate", "shard")
    )
    teacher = planned_teacher("openai/ViT-B-16", (6, 6), torch.bfloat16).module
    rows = [(p.numel() // len(p), len(p)) for p in teacher.parameters()]
    padded = sum(-(-first // 8) * 8 * width for width, first in rows)
    (name,) = (n for n in whole.communication if n.startswith("allgather"))
    a, b = whole.communication.pop(name), shared.communication.pop(name)
    assert name == "allgather over 8 GPUs"
    assert (b["calls"] - a["calls"], b["bytes"] - a["bytes"]) == (12 + 1, 2 * padded)
    assert whole.communication == shared.communication
    assert whole.memory.pop("teacher") == 2 * sum(p.numel() for p in teacher.parameters())
    held = shared.memory.pop("teacher")
    assert held == 2 * sum(-(-first // 8) * width for width, first in rows)
    saved = whole.memory.pop("total") - shared.memory.pop("total")
    assert whole.memory == shared.memory and saved > 0.8 * 8 * held


@pytest.mark.parametrize("sharding", ["replicate", "zero2", "full"])
def test_micro_batches_exchange_no_gradients(sharding):
    """Of a step of two, collectives are those of a step of one; `full` gathers weights each pass."""
    once, twice = (
        simulated(8, sharding=sharding, accumulate=parts, teacher="hog").communication
        for parts in (1, 2)
    )
    if sharding == "full":
        once["allgather over 8 GPUs"] = {
            key: 2 * value for key, value in once["allgather over 8 GPUs"].items()
        }
    assert twice == once
    assert any("reduce" in name for name in once)


def test_hybrid_stays_within_machines():
    found = simulated(32, sharding="hybrid")
    assert found.images == 2
    assert {"allgather over 8 GPUs", "reduce_scatter over 8 GPUs"} <= found.communication.keys()
    assert found.communication["allreduce over 4 GPUs"]["bytes"] == 4 * padded(8) // 8


def test_activations_are_those_of_a_gpu():
    """Which keeps what attention gives; at the peak a block's backward has begun."""
    options = dict(depth=12, batch_size=256, sharding="replicate")
    config = Config.from_options({**SMALL, **options})
    kept = PlannedRun.of(config, torch.bfloat16, "cuda").count(128).saved_bytes
    assert kept <= simulated(2, **options).memory["activation"] <= 1.1 * kept
    less = simulated(2, grad_checkpointing=True, **options)
    assert less.memory["activation"] < 0.5 * kept


@pytest.mark.parametrize(
    "gpus, options, says",
    [
        (1, {}, "of several GPUs"),
        (3, {}, "not a multiple of 3 GPUs"),
        (32, dict(accumulate=4), "not a multiple of accumulate 4"),
    ],
)
def test_bad_use(gpus, options, says):
    with pytest.raises(UsageError, match=says):
        simulated(gpus, **options)


def test_a_network_of_timm_sends_its_parameters():
    """Its blocks are units of their own: weights in 16 bits twice a step, gradients in float32."""
    pytest.importorskip("timm")
    sizes = dict(img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, mlp_hidden=128)
    found = simulated(2, model="timm/vit_tiny_patch16_224", sharding="full", **sizes)
    with torch.device("meta"):
        model = create_model("timm/vit_tiny_patch16_224", predict_dim=512, **sizes)
    rows = ((p.numel() // len(p), len(p)) for p in model.parameters())
    elements = sum(-(-first // 2) * 2 * width for width, first in rows)
    assert found.communication["allgather over 2 GPUs"] == {"calls": 6, "bytes": 2 * 2 * elements}
    assert found.communication["reduce_scatter over 2 GPUs"] == {"calls": 3, "bytes": 4 * elements}
