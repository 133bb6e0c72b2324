"""Two modules with the same weights and the same loss, and a training step of each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness import OURS, REFERENCE, Case, Variant
from eva_fast.baselines import training
from eva_fast.data import Batch
from eva_fast.layers import keep_copies
from eva_fast.objectives import Objective
from eva_fast.ops import choose
from eva_fast.train import TrainState, TrainStep, decay_groups, make_optimizer
from eva_fast.train.config import OptimConfig
from eva_fast.train.guard import Guard
from eva_fast.train.sums import Sums

RATE = 1e-4
SAME_PRODUCTS = "same products"
"""Ours with PyTorch's matrix products, as timm has: what is won beside them."""


def same_name(name: str) -> str:
    return name


@dataclass(kw_only=True, slots=True)
class Pair:
    """An objective's module and its counterpart."""

    name: str
    """Of the objective."""
    shape: str
    """Of student and batch, for people."""
    objective: Objective
    ours: nn.Module
    batch: Batch
    target: Tensor
    theirs: nn.Module
    their_loss: Callable[[], Tensor]
    """From the batch's bytes, normalisation included."""
    compared: tuple[str, ...]
    """Parameters of ours whose gradients are compared, far apart in the network."""
    renamed: Callable[[str], str] = same_name
    """From our names of parameters to theirs."""

    def our_loss(self) -> Tensor:
        return self.objective.loss(self.ours, self.batch, self.target)[0]

    def our_step(self) -> Callable[[], Any]:
        """The step of a run, guard and sums for the log included; the target stands for the teacher."""
        device, network = torch.device("cpu"), self.ours
        state = TrainState(
            module=network, teacher=None, loader=None, device=device, sums=Sums((), device),
            optimizer=make_optimizer(network, copies=keep_copies(network, torch.float32)),
            guard=Guard(device, scaled=False, spike=OptimConfig().spike),
        )  # fmt: skip
        step = TrainStep(
            state, self.objective, lambda batch: self.target, clip_grad=training.CLIP_NORM
        )
        return lambda: step(self.batch, rate=RATE)

    def their_step(self) -> Callable[[], Tensor]:
        """The same with PyTorch's fused AdamW over the same two groups of parameters."""
        named = dict(self.theirs.named_parameters())
        groups = [
            {"params": [named[self.renamed(n)] for n in names], "weight_decay": decay}
            for names, decay in zip(decay_groups(self.ours), (training.WEIGHT_DECAY, 0.0))
        ]
        optimizer = torch.optim.AdamW(
            groups, lr=RATE, betas=training.BETAS, eps=training.EPS, fused=True
        )

        def step() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            loss = self.their_loss()
            loss.backward()
            nn.utils.clip_grad_norm_(self.theirs.parameters(), training.CLIP_NORM, foreach=True)
            optimizer.step()
            return loss.detach()

        return step

    def case(self) -> Case:
        """Both steps; compared are the loss, the norm of all gradients, and some of them."""
        own = _values(self.ours, self.our_loss, self.compared)
        plain = _values(self.theirs, self.their_loss, map(self.renamed, self.compared))
        step = self.our_step()
        return Case(
            subject=f"{self.name} step", mode="step", shape=self.shape, device="cpu",
            variants={
                REFERENCE: Variant(self.their_step(), plain),
                OURS: Variant(step, own),
                SAME_PRODUCTS: Variant(
                    lambda: _plain_products(step), lambda: _plain_products(own)
                ),
            },
            batch=len(self.batch.images),
        )  # fmt: skip


def _values(network: nn.Module, loss: Callable[[], Tensor], names) -> Callable[[], list[Tensor]]:
    names = tuple(names)

    def values() -> list[Tensor]:
        network.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        named = dict(network.named_parameters())
        norm = torch.stack([p.grad.norm() for p in named.values()]).norm()
        found = [value.detach(), norm, *(named[n].grad.clone() for n in names)]
        network.zero_grad(set_to_none=True)
        return found

    return values


def _plain_products(call: Callable[[], Any]) -> Any:
    choose.force("gemm", "torch")
    try:
        return call()
    finally:
        choose.force("gemm")


def images_batch(size: int, side: int, fields=()) -> Batch:
    """Random bytes, and the fields that are drawn from seeds."""
    columns: dict[str, Any] = {}
    for field in fields:
        column = torch.empty(size, *field.shape, dtype=torch.int32)
        field.make_rows(torch.arange(size).numpy(), column.numpy())
        columns[field.name] = column
    numbers = torch.arange(size)
    images = torch.randint(256, (size, 3, side, side), dtype=torch.uint8)
    return Batch(images=images, **columns, ids=numbers, views=torch.zeros_like(numbers))
