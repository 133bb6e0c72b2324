"""Which kernels a run uses: forced, as measured for its shapes, or as its checkpoint says."""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch

from eva_fast.layers import Stream
from eva_fast.model import EvaViT, head
from eva_fast.ops import FusedAdamW, dispatch
from eva_fast.ops.measure import Runs, choose_kernels

log = logging.getLogger(__name__)


def settle_kernels(
    mode: str,
    model: EvaViT,
    optimizer: FusedAdamW,
    device: torch.device,
    *,
    batch: int,
    masked: int,
    kept: dict[str, str] | None,
) -> dict[str, str]:
    """Chooses implementations for the process and returns {op: kind}.

    Args:
        mode: "auto" measures (or reads the measurement kept on disk); "torch", "native" and
            "triton" force.
        batch, masked: images of one forward pass, and masked patches an image.
        kept: the choice of the run that is resumed; it is taken over, since another kernel may
            round otherwise and the run would not end with the same weights.
    """
    if mode != "auto":
        dispatch.set_kernels(mode)
        return {}
    if kept is not None:
        dispatch.set_kernels(
            "auto", {o: k for o, k in kept.items() if dispatch.usable(k, device.type)}
        )
        return kept
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        found = choose_kernels(
            lambda: _one_step(model, optimizer, device, batch, masked),
            device,
            _shapes(model, batch, masked),
            _heads(model, device, batch * masked),
        )
        optimizer.zero_grad(set_to_none=True)
    return {op: entry["kind"] for op, entry in found.items()}


def _shapes(model: EvaViT, batch: int, masked: int) -> dict[str, Any]:
    dtype = str(model.compute_dtype)
    return {"sizes": str(model.sizes), "dtype": dtype, "batch": batch, "masked": masked}


def _heads(model: EvaViT, device: torch.device, rows: int) -> dict[str, Runs]:
    """The head and loss of `rows` masked patches, composed and fused, where there is a fused one."""
    if dispatch.fused_kind(head.OP, device.type) != "triton":
        return {}
    dtype = model.precision.dtype(model.pos_embed.dtype, device.type)
    x = torch.randn(rows, 1, model.sizes.embed_dim, dtype=dtype, device=device)
    branch, bias = torch.randn_like(x), torch.randn_like(model.lm_head.weight[0])
    stream = Stream(*(t.requires_grad_() for t in (x, branch, bias)))
    target = torch.randn(rows, model.sizes.predict_dim, device=device)

    def run(loss: Callable[..., torch.Tensor]) -> None:
        loss(model.lm_head, stream, model.norm, target).backward()

    return {
        head.OP: {
            "torch": functools.partial(run, head.composed_loss),
            "triton": functools.partial(run, head.fused_loss),
        }
    }


def _one_step(
    model: EvaViT, optimizer: FusedAdamW, device: torch.device, batch: int, masked: int
) -> None:
    """Forward, backward and an optimiser step on noise that leaves everything as it was."""
    sizes = model.sizes
    images = torch.randint(
        256, (batch, 3, sizes.img_size, sizes.img_size), dtype=torch.uint8, device=device
    )
    mask = torch.arange(masked, dtype=torch.int32, device=device).repeat(batch, 1)
    target = torch.randn(batch * masked, sizes.predict_dim, device=device)
    model.train().loss(images, mask, target).backward()
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step(grad_scale=torch.zeros((), device=device))
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
    optimizer.state.clear()
    optimizer.zero_grad(set_to_none=True)
