"""A tiny objective, loader and state for tests of the step and the loop, without images or files."""

import torch
from torch import nn

from eva_fast.data import Batch
from eva_fast.objectives import Objective
from eva_fast.train import TrainState, TrainStep, make_optimizer
from eva_fast.train.baseline import LOSS, Baseline
from eva_fast.train.guard import Guard
from eva_fast.train.optimizer import Ema
from eva_fast.train.sums import Sums

CPU = torch.device("cpu")


class Counting(nn.Module):
    """A linear map with a buffer that moves after each applied step."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(12, 4)
        self.register_buffer("moved", torch.zeros(()))


class Squares(Objective):
    """Mean square of a linear map of the pixels less the target."""

    name, metrics = "squares", ("largest",)

    def __init__(self):
        self.flags = []

    def build(self, setting, teacher):
        return Counting()

    def loss(self, module, batch, target):
        error = module.linear(batch.images.flatten(1).float() / 255) - target
        return error.square().mean(), {"largest": error.detach().abs().amax()}

    def constant_loss(self, constant, rows):
        return (rows - constant).square().mean()

    def after_step(self, module, applied):
        self.flags.append(applied)
        module.moved += applied.float()


class FakeLoader:
    """Batches of 4 images of 2x2 pixels, a function of their number. At `bad` it raises."""

    batches_per_epoch, wait_seconds, bad_count = 5, 0.0, 0

    def __init__(self, bad=None):
        self.number, self.bad = 0, bad

    def __iter__(self):
        return self

    def __next__(self):
        if self.number == self.bad:
            raise RuntimeError("too many images could not be read")
        self.number += 1
        return batch(self.number)

    def state_dict(self):
        return {"feed": {"number": self.number}}

    def load_state_dict(self, state):
        self.number = state["feed"]["number"]


def batch(seed, size=4):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (size, 3, 2, 2), generator=generator, dtype=torch.uint8)
    number = torch.arange(size)
    mask = torch.zeros(size, 1, dtype=torch.int32)
    return Batch(images=images, mask=mask, ids=number, views=number)


def ask(batch):
    """A target that depends on the images, so that micro-batches must get their own."""
    return batch.images.flatten(1)[:, :4].float() / 100


def make_step(
    objective=None, loader=None, *, scaled=False, spike=0.0, ema=None, ask=ask, **options
):
    """A step over a fresh `Counting`."""
    objective = objective or Squares()
    module = objective.build(None, None)
    baseline = Baseline.of(objective, 4, CPU)
    state = TrainState(
        module=module,
        teacher=None,
        loader=loader or FakeLoader(),
        optimizer=make_optimizer(module, lr=1e-2),
        guard=Guard(CPU, scaled=scaled, spike=spike),
        sums=Sums(objective.metrics + ((LOSS,) if baseline else ()), CPU),
        device=CPU,
        ema=Ema(module, ema) if ema else None,
        baseline=baseline,
    )
    return TrainStep(state, objective, ask, **{"clip_grad": 1.0, **options})


def snapshot(state):
    """Copies of all that a step may move."""
    moments = [
        value.clone()
        for parameter in state.module.parameters()
        for value in state.optimizer.state[parameter].values()
    ]
    averages = list(state.ema.weights.values()) if state.ema else []
    averages += state.baseline.tensors().values() if state.baseline else []
    return [t.clone() for t in (*state.module.state_dict().values(), *moments, *averages)]
