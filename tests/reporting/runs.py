"""Folders as runs leave them, with numbers made up."""

import json
import math
import random

import yaml
from PIL import Image, ImageDraw

from eva_fast.config import Config

KERNELS = {
    "adamw": {
        "implementation": "native", "why": "measured",
        "milliseconds": {"native": 3.0, "torch": 15.5},
    },
    "gemm": {
        "implementation": "torch", "why": "measured",
        "milliseconds": {"native": 314.2, "torch": 293.3},
    },
    "patchify": {"implementation": "torch", "why": "alone", "milliseconds": {"torch": 0.3}},
}  # fmt: skip


def line(step, total=400, lr=1e-3, seed=0, seconds=None, **other):
    """A line of metrics.jsonl, of a loss that falls with a little noise."""
    noise = random.Random(1000 * seed + step)
    gain = 0.4 * (1 - math.exp(-step * lr / 0.1)) + noise.gauss(0, 0.008)
    seconds = step * 0.5 if seconds is None else seconds
    return {
        "step": step, "epoch": round(step / 50, 4), "loss": -0.1 - gain, "baseline_loss": -0.1,
        "gain": gain, "lr": lr * (1 - step / total), "grad_norm": 1 + 2 * seed + noise.random(),
        "images_per_second": 64 - 20 * seed + noise.gauss(0, 2),
        "data_wait": 0.05 * seed + abs(noise.gauss(0.02, 0.01)),
        "host_ms": 480 + 200 * seed + noise.gauss(0, 9), "seconds": seconds,
        "seconds_left": (total - step) * 0.5, "skipped_steps": 0, "bad_images": 0, **other,
    }  # fmt: skip


def make_run(folder, lines=(), pictures=(), probes=(), environment=None, **options):
    """A run's folder. pictures: steps at which it drew."""
    folder.mkdir(parents=True)
    config = Config.from_options({"batch_size": 32, "steps": 400, **options}).options()
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    known = {
        "eva_fast": "0.1.0",
        "torch": "2.14.1",
        "device": "cpu",
        "threads": 2,
        "kernels": KERNELS,
    }
    (folder / "environment.json").write_text(json.dumps({**known, **(environment or {})}))
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in lines)
    if probes:
        with (folder / "probes.jsonl").open("w") as file:
            file.writelines(json.dumps(entry) + "\n" for entry in probes)
    for step in pictures:
        draw(folder / "pictures" / f"step_{step:09d}.png", step)
    return folder


def draw(path, step):
    """A picture that tells its step by its colour."""
    path.parent.mkdir(exist_ok=True)
    image = Image.new("RGB", (940, 440), "white")
    ImageDraw.Draw(image).rectangle((20, 20, 920, 420), fill=(step % 256, step // 256, 128))
    image.save(path)
