"""From starting Python to the end of the first training step, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.shapes import Shape

MODES = ("process",)

_CODE = """
import sys, torch
from bench import step
from bench.kit import Kit
from bench.shapes import Shape, TINY
from eva_fast.model import sizes_of
name, model, batch, timed = sys.argv[1:]
sizes = TINY if model == "tiny" else sizes_of(model, predict_dim=768)
device = "cuda" if torch.cuda.is_available() else "cpu"
dtype = torch.bfloat16 if device == "cuda" else torch.float32
shape = Shape(name=model, sizes=sizes, batch=int(batch), device=device, dtype=dtype)
step.first_step(name, shape, Kit("step", timed == "1", False))
if device == "cuda":
    torch.cuda.synchronize()
"""


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Imports, building the model on its device, compiling or choosing kernels, one step."""
    width = {192: "ti", 384: "s", 768: "b", 1024: "l", 1408: "g"}.get(shape.sizes.embed_dim)
    model = "tiny" if width is None else f"eva_{width}_patch14_224"
    root = str(Path(__file__).parent.parent)

    def start(name: str) -> None:
        words = [name, model, str(shape.batch), "1" if kit.timed else "0"]
        environment = {**os.environ, "PYTHONPATH": root}
        done = subprocess.run(
            [sys.executable, "-c", _CODE, *words],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise RuntimeError(f"the first step of {name} failed: {done.stderr[-2000:]}")

    names = ["reference", "eva_fast"]
    if kit.timed and not kit.quick:
        names.append("compile")
    else:
        kit.missing["compile"] = "not with --quick"
    return Case(
        subject="first_step",
        mode=mode,
        shape=shape.label,
        device="cpu",
        variants={name: Variant(lambda name=name: start(name)) for name in names},
        missing=kit.missing,
        batch=shape.batch,
        warm=False,
        weigh=False,
    )
