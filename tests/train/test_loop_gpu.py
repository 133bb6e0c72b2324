"""The loop on a GPU: the losses of the CPU, and no step that waits for the device."""

import json

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import eva_fast

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
TINY = dict(
    model="eva_ti_patch8_64",
    embed_dim=64,
    depth=3,
    num_heads=2,
    mlp_hidden=160,
    drop_path=0.0,
    batch_size=16,
    steps=12,
    lr=2e-3,
    workers=0,
    progress=False,
)


class Noise:
    """64 images of smooth noise, as uint8 tensors [3, 80, 80]."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        coarse = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(index))
        smooth = torch.nn.functional.interpolate(coarse, (80, 80), mode="bicubic")
        return (smooth[0].clamp(0, 1) * 255).to(torch.uint8)


def losses(out, **options):
    result = eva_fast.pretrain(Noise(), out=out, log_every=1, **{**TINY, **options})
    lines = (result.out / "metrics.jsonl").read_text().splitlines()
    return torch.tensor([json.loads(line)["loss"] for line in lines])


@pytest.mark.parametrize(
    ("precision", "kernels", "tolerance"),
    [
        ("fp32", "torch", 1e-3),
        ("fp32", "triton", 1e-3),
        ("bf16", "auto", 2e-2),
        ("fp16", "auto", 2e-2),
    ],
)
def test_the_loss_falls_as_on_the_cpu(tmp_path, precision, kernels, tolerance):
    on_cpu = losses(tmp_path / "cpu", device="cpu", kernels="torch")
    on_gpu = losses(tmp_path / "gpu", device="cuda", kernels=kernels, precision=precision)
    assert on_cpu[-1] < on_cpu[0]
    torch.testing.assert_close(on_gpu, on_cpu, rtol=0, atol=tolerance)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_step_waits_for_the_device(tmp_path, workers):
    """Between the log points any call that synchronises raises."""
    done = 0

    def count(*_):
        nonlocal done
        done += 1
        watched = 3 <= done < TINY["steps"] - 1  # compiling and the last log point may wait
        torch.cuda.set_sync_debug_mode("error" if watched else "default")

    hook = register_optimizer_step_post_hook(count)
    options = {**TINY, "workers": workers, "log_every": 1000, "picture_every": None}
    try:
        eva_fast.pretrain(Noise(), out=tmp_path / "run", device="cuda", ema=0.99, **options)
    finally:
        hook.remove()
        torch.cuda.set_sync_debug_mode("default")
    assert done >= TINY["steps"]
