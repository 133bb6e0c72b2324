"""Clipping and AdamW over all parameters of a student; in eva_fast with the guard, as a run does."""

from collections.abc import Callable

import torch

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.baselines import training as plain
from eva_fast.model import EvaViT
from eva_fast.ops import FusedAdamW
from eva_fast.train.guard import Guard
from eva_fast.train.optimizer import gradient_norm

MODES = ("step",)
OPTIONS = {"lr": 1e-3, "betas": plain.BETAS, "eps": plain.EPS}


def _apex(optimizers, model: EvaViT):
    return optimizers.FusedAdam(plain.parameter_groups(model), adam_w_mode=True, **OPTIONS)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Float32 parameters with fixed random gradients, norm far above the clip; every variant's
    parameters are compared after three steps."""
    torch.manual_seed(0)
    start = [p.detach() for p in EvaViT(shape.sizes).to(shape.device).parameters()]
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(p.shape, generator=generator).mul_(0.01).to(shape.device) for p in start]

    def add(name: str, make: Callable[[EvaViT], torch.optim.Optimizer]) -> None:
        with torch.device("meta"):
            model = EvaViT(shape.sizes)
        model.to_empty(device=shape.device)
        parameters = list(model.parameters())
        with torch.no_grad():
            for p, value, grad in zip(parameters, start, grads, strict=True):
                p.copy_(value)
                p.grad = grad.clone()
        optimizer, guard = make(model), Guard(torch.device(shape.device), scaled=False)
        loss = torch.zeros((), device=shape.device)

        def step() -> None:
            if isinstance(optimizer, FusedAdamW):
                guard.step(optimizer, loss, gradient_norm(parameters), plain.CLIP_NORM)
            else:
                torch.nn.utils.clip_grad_norm_(parameters, plain.CLIP_NORM)
                optimizer.step()

        @torch.no_grad()
        def values() -> list[torch.Tensor]:
            for _ in range(3):
                for p, grad in zip(parameters, grads, strict=True):
                    p.grad.copy_(grad)
                step()
            moved = [(p - v).flatten() for p, v in zip(parameters, start, strict=True)]
            return [torch.cat(moved)]

        kit.add(name, step)
        variants[name] = Variant(step, values)

    variants: dict[str, Variant] = {}
    add("reference", lambda m: torch.optim.AdamW(plain.parameter_groups(m), **OPTIONS))
    add("tuned", lambda m: torch.optim.AdamW(plain.parameter_groups(m), fused=True, **OPTIONS))
    add("eva_fast", lambda m: FusedAdamW(plain.parameter_groups(m), **OPTIONS))
    kit.add_library("apex FusedAdam", "apex.optimizers", lambda module: module)
    apex = kit.functions.pop("apex FusedAdam", None)
    if apex is not None:
        add("apex FusedAdam", lambda m: _apex(apex, m))
    return Case(
        subject="optimizer",
        mode=mode,
        shape=shape.label,
        device=shape.device,
        variants=variants,
        missing=kit.missing,
        tolerance=1e-5,
    )
