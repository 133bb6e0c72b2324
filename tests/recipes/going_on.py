"""Small runs that go on, and what is done to them between."""

import json

import numpy as np
from PIL import Image

import eva_fast
from eva_fast.train import checkpoint

TINY = dict(
    model="eva_ti_patch16_96", depth=1, embed_dim=32, num_heads=2, mlp_hidden=64, steps=2, batch_size=4,
    teacher="hog", workers=0, kernels="torch", device="cpu", progress=False,
)  # fmt: skip


def pictures(folder, count=12, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    g = np.random.default_rng(seed)
    for number in range(count):
        pixels = g.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48)).save(folder / f"p{number:02d}.png")
    return folder


def train(data, out, **options):
    return eva_fast.pretrain(data, out=out, **{**TINY, **options})


def go_on(data, out, **options):
    options = {"steps": 4, **options}
    result = train(data, out, resume="auto", **options)
    assert result.metrics["step"] == options["steps"]
    return result


def weights_of(out):
    return (out / "model.safetensors").read_bytes()


def edit_state(out, edit, part="loader"):
    """Writes a run's newest checkpoint again with another state of the loader, or of all."""
    folder = checkpoint.newest(out / "checkpoints")
    state = checkpoint.read_state(folder)
    edit(state[part] if part else state)
    (folder / checkpoint.STATE).write_text(json.dumps(state))
    manifest = json.loads((folder / checkpoint.MANIFEST).read_text())
    path = folder / checkpoint.STATE
    manifest["files"][path.name] = [path.stat().st_size, checkpoint.crc32(path)]
    (folder / checkpoint.MANIFEST).write_text(json.dumps(manifest))
