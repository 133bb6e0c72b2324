"""`pretrain(grad_checkpointing=True)`: the same run, to the last bit, also from its middle on."""

import json

import pytest
from safetensors.torch import load_file

import eva_fast
from eva_fast import native
from eva_fast.errors import UsageError

TINY = dict(
    data="builtin", teacher="hog", model="eva_ti_patch8_32", embed_dim=32, depth=3, num_heads=2,
    mlp_hidden=48, batch_size=8, log_every=1, drop_path=0.3, workers=0, device="cpu",
    kernels="native", precision="bf16", accumulate=2, progress=False,
    lr=1e-3, min_lr=1e-3, warmup_epochs=0.0,  # one rate, so that a length changes no step
)  # fmt: skip


def trained(out, **options):
    result = eva_fast.pretrain(out=out, **{**TINY, **options})
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["loss"], line["grad_norm"]) for line in lines], load_file(result.weights)


@pytest.mark.skipif(not native.available(), reason="the native library is not built")
def test_a_run_keeps_its_numbers(tmp_path):
    """With kept 16-bit copies, dropped paths and two passes a step."""
    expected, weights = trained(tmp_path / "kept", steps=4)
    again = dict(grad_checkpointing=True)
    trained(tmp_path / "again", steps=2, **again)
    found, after = trained(
        tmp_path / "again", steps=4, resume="auto", grad_checkpointing_share=0.6, **again
    )
    assert len(expected) == 4 and found == expected
    assert all((after[name] == weights[name]).all() for name in weights)


def test_a_share_must_be_one():
    with pytest.raises(UsageError, match="grad_checkpointing_share must be above 0"):
        eva_fast.pretrain(grad_checkpointing=True, grad_checkpointing_share=0.0)
