"""The loop on a GPU: the losses of the CPU, and no step that waits for the device."""

import json

import pytest
import torch

import eva_fast
from eva_fast.config import Config
from eva_fast.recipes.pretrain import run
from eva_fast.train.captured import WARM

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


@pytest.mark.parametrize(("workers", "graph"), [(0, "off"), (2, "off"), (2, "on")])
def test_no_step_waits_for_the_device(tmp_path, workers, graph):
    """Between the log points any call that synchronises raises."""
    # compiling, capturing and the last log point may wait
    first = 3 if graph == "off" else WARM + 1

    seen = []

    def watch(done):
        seen.append(done)
        watched = first <= done < TINY["steps"] - 1
        torch.cuda.set_sync_debug_mode("error" if watched else "default")

    options = {**TINY, "workers": workers, "log_every": 1000, "picture_every": None}
    options |= {"ema": 0.99, "graph": graph, "data": Noise(), "out": tmp_path / "run"}
    try:
        run(Config.from_options({**options, "device": "cuda"}), on_step=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert seen == list(range(1, TINY["steps"] + 1))
