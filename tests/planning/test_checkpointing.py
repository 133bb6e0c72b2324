"""What a plan counts with activation checkpointing, against the real student on the CPU."""

import pytest
import torch

from eva_fast import native
from eva_fast.layers import attention, keep_copies, masked_tail
from eva_fast.model import EvaViT, ModelSizes
from eva_fast.planning.counter import Recorder, count_step

SIZES = ModelSizes(
    img_size=64, patch_size=16, embed_dim=96, depth=6, num_heads=3, mlp_hidden=160, predict_dim=40
)
BATCH, MASKED = 3, 5
REAL = dict(masked=MASKED, device="cpu")
pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not built")


@pytest.fixture(autouse=True)
def outputs_are_kept(monkeypatch):
    """As on GPUs, which a count is of: a CPU's attention computes its output again."""
    for module in (attention, masked_tail):
        monkeypatch.setattr(module, "recomputes_output", lambda packed: False)


def student(dtype, share, sizes=SIZES):
    torch.manual_seed(0)
    model = EvaViT(sizes, kernels="native").to(dtype)
    keep_copies(model, dtype)
    model.set_grad_checkpointing(share > 0, share or 1.0)
    return model


def loss(model, batch=BATCH, dtype=torch.float32):
    sizes = model.sizes
    images = torch.randint(0, 256, (batch, 3, sizes.img_size, sizes.img_size), dtype=torch.uint8)
    mask = torch.arange(1, MASKED + 1, dtype=torch.int32).repeat(batch, 1)
    return model.loss(images, mask, torch.randn(batch * MASKED, sizes.predict_dim, dtype=dtype))


def kept_bytes(model, dtype):
    """Bytes of distinct storages that autograd holds at the end of a real forward."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    own |= {copy.untyped_storage().data_ptr() for copy in keep_copies(model, dtype).values()}
    held = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        value = loss(model, dtype=dtype)
    found = sum(storage.nbytes() for storage in held.values())
    value.backward()
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_the_counted_bytes_are_those_that_a_real_step_keeps(dtype, share):
    counted = count_step("eva_fast", SIZES, BATCH, dtype=dtype, recompute=share, **REAL)
    assert counted.saved_bytes == kept_bytes(student(dtype, share), dtype)


def test_what_is_computed_again_is_counted():
    model, recorder = student(torch.float32, 1.0), Recorder(MASKED * BATCH)
    with recorder:
        value = loss(model)
        recorder.phase = "backward"
        value.backward()
    counted = count_step("eva_fast", SIZES, BATCH, dtype=torch.float32, recompute=1.0, **REAL)
    for phase in ("forward", "backward"):
        real = sum(op.flops for op in recorder.operators if op.phase == phase)
        assert counted.total("flops", phase=phase) == real > 0
    plain = count_step("eva_fast", SIZES, BATCH, dtype=torch.float32, **REAL)
    assert counted.total("flops", phase="forward") == plain.total("flops", phase="forward")


@pytest.mark.parametrize("formulation", ["official", "tuned", "eva_fast"])
def test_fewer_bytes_and_more_arithmetic_with_each_block(formulation):
    counts = [count_step(formulation, SIZES, BATCH, recompute=r) for r in (0.0, 0.34, 0.67, 1.0)]
    saved, flops = [c.saved_bytes for c in counts], [c.flops for c in counts]
    assert saved == sorted(saved, reverse=True) and len(set(saved)) == 4
    assert flops == sorted(flops) and len(set(flops)) == 4
