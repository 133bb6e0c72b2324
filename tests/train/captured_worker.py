"""Runs a captured step on the stub of CUDA (`bench.stub`) and prints what it launched, as JSON.

Two captures of two steps, with other batches and other learning rates: every Triton launch and every
operator of PyTorch with its arguments. Addresses of what lasts (weights, moments, sums, ...) are given
by what they are, those of the graph's own memory by the order in which they come up.
"""

import json
import sys
from collections import Counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton import knobs

from bench.stub import device
from eva_fast.data import Batch
from eva_fast.kernels import launch
from eva_fast.layers import keep_copies
from eva_fast.model import EvaViT, ModelSizes
from eva_fast.objectives.eva import Eva
from eva_fast.objectives.request import Request, answer
from eva_fast.ops import choose
from eva_fast.teachers import load_teacher
from eva_fast.train import TrainState, TrainStep, make_optimizer
from eva_fast.train.baseline import LOSS, Baseline
from eva_fast.train.captured import CapturedStep
from eva_fast.train.guard import Guard
from eva_fast.train.optimizer import Ema
from eva_fast.train.sums import Sums

GPU = torch.device("cuda:0")
SIZES = ModelSizes(
    img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=2, mlp_hidden=128, predict_dim=108
)


def make_step() -> TrainStep:
    choose.set_kernels("triton")
    torch.manual_seed(0)
    model = EvaViT(SIZES, drop_path=0.2, compute_dtype=torch.bfloat16).to(GPU).train()
    teacher, objective = load_teacher("hog", grid=(4, 4), device="cuda"), Eva()
    state = TrainState(
        module=model, teacher=teacher, loader=None, device=GPU, guard=Guard(GPU, False, spike=7.0),
        optimizer=make_optimizer(model, copies=keep_copies(model, torch.bfloat16)),
        sums=Sums((LOSS,), GPU), ema=Ema(model, 0.9), baseline=Baseline.of(objective, teacher.dim, GPU),
    )  # fmt: skip
    ask = answer(teacher, Request())
    return TrainStep(state, objective, ask, clip_grad=3.0, accumulate=2)


def batch(number: int) -> Batch:
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    mask = torch.arange(number % 3, number % 3 + 6, dtype=torch.int32).repeat(4, 1)
    ids = torch.arange(4) + number
    return Batch(images=images, mask=mask, ids=ids, views=ids).to(GPU)


class Launches(TorchDispatchMode):
    """Everything that is launched, with its arguments."""

    def __init__(self, lasting: dict[int, str]):
        super().__init__()
        self.lasting, self.seen, self.found = lasting, {}, []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.note(str(func), args, kwargs, out)
        return out

    def note(self, name, *values):
        self.found.append(f"{name} {[self.told(v) for v in values]}")

    def told(self, value):
        if isinstance(value, Tensor):
            address = value.data_ptr()
            known = self.lasting.get(address) or self.seen.setdefault(address, len(self.seen))
            return known, tuple(value.shape), tuple(value.stride()), str(value.dtype)
        if isinstance(value, list | tuple):
            return [self.told(v) for v in value]
        if isinstance(value, dict):
            return {k: self.told(v) for k, v in value.items()}
        return repr(value)


def lasting(step: TrainStep) -> dict[int, str]:
    state = step.state
    named = dict(state.module.named_parameters())
    named |= {f"ema.{n}": t for n, t in state.ema.weights.items()}
    named |= {f"baseline.{n}": t for n, t in state.baseline.tensors().items()}
    named |= {**state.guard.tensors(), "sums": state.sums.tensor}
    for name, parameter in state.module.named_parameters():
        named |= {f"{name}.{k}": t for k, t in state.optimizer.state[parameter].items()}
        if parameter in state.optimizer.copies:
            named[f"{name}.copy"] = state.optimizer.copies[parameter]
    return {t.data_ptr(): name for name, t in named.items()}


def captured(graphed: CapturedStep, number: int, rate: float) -> list[str]:
    """Launches of a capture; those of the step's own copies and checks around it are not among them."""
    step, run = graphed.step, graphed.step.run
    mode, real = Launches(lasting(step)), launch.Kernel._launch

    def watched(inputs):
        with mode:
            return run(inputs)

    def noted(kernel, grid, *args, **options):
        mode.note(kernel.fn.fn.__name__, grid, args, options)
        return real(kernel, grid, *args, **options)

    def hook(*_):
        """While there is one, every launch goes through the kernel."""

    graphed.captured = None
    step.run, launch.Kernel._launch = watched, noted
    knobs.runtime.launch_enter_hook.add(hook)
    try:
        graphed(batch(number), rate)
    finally:
        step.run, launch.Kernel._launch = run, real
        knobs.runtime.launch_enter_hook.remove(hook)
    return mode.found


def main() -> None:
    graphed = CapturedStep(make_step(), "on")
    eager = []
    for number in range(3):
        data = batch(number)
        device.forget()
        graphed(data, 1e-3)
        eager.append(device.counts())
    device.forget()
    first, second = captured(graphed, 3, 1e-3), captured(graphed, 4, 7e-4)
    faults = device.faults()
    replays = []
    for number in range(5, 8):
        data = batch(number)
        device.forget()
        graphed(data, 1e-3)
        replays.append(device.counts())
    step = graphed.state.step
    other = Batch({name: value[:2] for name, value in batch(9).items()})
    device.forget()
    graphed(other, 1e-3)
    json.dump(
        {
            "eager": eager[-1], "faults": faults, "replays": replays, "step": step,
            "launches": [len(first), len(second)], "smaller_batch": device.counts(),
            "differences": [(a, b) for a, b in zip(first, second) if a != b][:3],
            "kinds": Counter(line.split()[0] for line in first),
        },
        sys.stdout,
    )  # fmt: skip


if __name__ == "__main__":
    main()
