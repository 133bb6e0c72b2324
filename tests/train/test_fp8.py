"""Runs with precision="fp8": where they are refused, and that they train and say what they leave."""

import json
import logging

import numpy as np
import pytest
import torch

import eva_fast
from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.ops.fp8_gemm import has_fp8
from eva_fast.train.resolve import device_and_dtype

TINY = dict(
    model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, batch_size=8, workers=0,
    precision="fp8", progress=False, log_every=1,
)  # fmt: skip


@pytest.fixture
def noise():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (40, 40, 3), dtype=np.uint8) for _ in range(16)]


def resolve(**options):
    return device_and_dtype(Config.from_options({"precision": "fp8", **options}))


def pretend(monkeypatch, capability):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: int(capability is not None))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "a GPU")
    has_fp8.cache_clear()


@pytest.fixture(autouse=True)
def what_is_here_is_asked_again():
    yield
    has_fp8.cache_clear()


@pytest.mark.parametrize(
    ("capability", "options", "message"),
    [
        (None, {}, "torch sees none: use precision='bf16'; device='cpu' emulates fp8"),
        ((8, 0), {}, "from Hopper on .*, and this is a GPU: use precision='bf16'"),
        ((9, 0), {"kernels": "torch"}, "leave kernels at 'auto', or use precision='bf16'"),
    ],
    ids=["no GPU", "A100", "plain layers"],
)
def test_refused(monkeypatch, capability, options, message):
    pretend(monkeypatch, capability)
    with pytest.raises(UsageError, match=message):
        resolve(**options)


@pytest.mark.parametrize("capability", [(8, 9), (9, 0), (10, 0)], ids=str)
def test_on_newer_gpus_all_else_is_bfloat16(monkeypatch, capability):
    pretend(monkeypatch, capability)
    device, dtype = resolve()
    assert device.type == "cuda" and dtype == torch.bfloat16


def test_a_run_on_the_cpu_where_it_is_asked_for(tmp_path, noise, caplog):
    """It trains, nearly as in bfloat16, and says which layers it leaves."""
    options = {**TINY, "data": noise, "device": "cpu", "kernels": "native", "mlp_hidden": 40}
    with caplog.at_level(logging.WARNING, "eva_fast"):
        whole = eva_fast.pretrain(out=tmp_path / "a", steps=2, **options)
    said = "precision fp8: 4 Linears stay in bf16, blocks.0.mlp.fc1 (40 is not a multiple of 16)"
    assert said in caplog.text
    bf16 = eva_fast.pretrain(out=tmp_path / "b", steps=2, **{**options, "precision": "bf16"})
    curves = [
        [json.loads(line)["loss"] for line in (run.out / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, bf16)
    ]
    assert curves[0] != curves[1] and np.allclose(*curves, atol=0.05)
