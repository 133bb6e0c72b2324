"""Weights out of a run, finished or not."""

import pytest
import torch
from safetensors.torch import load_file

import eva_fast
from eva_fast.recipes.export import export_weights

TINY = dict(
    data="builtin", model="eva_ti_patch8_32", embed_dim=32, depth=1, num_heads=4, mlp_hidden=48,
    batch_size=8, workers=0, device="cpu", kernels="torch", progress=False,
)  # fmt: skip


def test_run_file_and_checkpoint_give_the_same_weights(tmp_path):
    run = eva_fast.pretrain(out=tmp_path / "run", steps=2, **TINY)
    expected = load_file(run.weights)
    for source in (run.out, run.weights, run.checkpoint):
        found = load_file(export_weights(source, tmp_path / "deep" / "out.safetensors"))
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[k], expected[k]) for k in expected)
    run.weights.unlink()  # as in a run that has not ended
    found = load_file(export_weights(run.out, tmp_path / "again.safetensors"))
    assert all(torch.equal(found[k], expected[k]) for k in expected)
    (run.checkpoint / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="damaged"):
        export_weights(run.checkpoint, tmp_path / "never.safetensors")
    assert not (tmp_path / "never.safetensors").exists()


def test_nothing_to_export(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither final weights nor a whole checkpoint"):
        export_weights(tmp_path, tmp_path / "x.safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        export_weights(tmp_path / "nowhere", tmp_path / "x.safetensors")
