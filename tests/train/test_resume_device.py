"""A run that goes on on its device ends as one that was never interrupted, on a GPU too."""

import shutil

import pytest
import torch
from safetensors.torch import load_file

import eva_fast

STEPS, EVERY = 7, 3
TINY = dict(
    model="eva_ti_patch8_32", embed_dim=64, depth=2, num_heads=2, mlp_hidden=96, batch_size=8,
    teacher="hog", workers=0, drop_path=0.1, steps=STEPS, checkpoint_every=EVERY,
    keep_checkpoints=9, ema=0.9, log_every=1, progress=False,
)  # fmt: skip


class Noise:
    """40 images, uint8 [3, 48, 48]."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randint(256, (3, 48, 48), generator=generator, dtype=torch.uint8)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_that_goes_on_ends_with_the_same_weights(tmp_path, device, precision):
    """From the checkpoint of step 3, as left by a kill before that of step 6 was written."""
    if device == "cpu" and precision != "fp32":
        pytest.skip("a CPU computes in float32; test_guard.py has the state of fp16's loss scale")
    kernels = "torch" if device == "cpu" else "auto"  # no race: seconds, and nothing of it here
    options = dict(data=Noise(), device=device, precision=precision, kernels=kernels, **TINY)
    whole = eva_fast.pretrain(out=tmp_path / "run", **options)
    kept = {p.name: load_file(p) for p in sorted(whole.out.glob("model*.safetensors"))}
    assert len(kept) == 2
    folders = sorted((whole.out / "checkpoints").iterdir())
    late = [f for f in folders if int(f.name.removeprefix("step_")) > EVERY]
    assert len(folders) - len(late) == 1 and late
    for folder in late:
        shutil.rmtree(folder)
    again = eva_fast.pretrain(out=tmp_path / "run", **options, resume="auto")
    assert again.metrics["step"] == STEPS
    assert again.metrics["loss"] == pytest.approx(whole.metrics["loss"], rel=1e-5)
    for name, tensors in kept.items():
        found = load_file(again.out / name)
        for key, tensor in tensors.items():
            if device == "cpu":
                assert torch.equal(found[key], tensor), key
            else:  # libraries may add up in another order from one call to the next
                torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)
