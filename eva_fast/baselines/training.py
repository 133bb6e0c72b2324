"""EVA-01's training step in plain PyTorch: its parameter groups, AdamW and clipping."""

import torch
from torch import Tensor, nn

from eva_fast.baselines.official import OfficialViT
from eva_fast.baselines.tuned import TunedViT

BETAS = (0.9, 0.98)
EPS = 1e-6
WEIGHT_DECAY = 0.05
CLIP_NORM = 3.0


def parameter_groups(model: nn.Module) -> list[dict]:
    """AdamW's two groups: no decay for 1-D parameters, biases, `pos_embed` and `cls_token`."""
    decay: list[Tensor] = []
    plain: list[Tensor] = []
    for name, p in model.named_parameters():
        exempt = p.ndim == 1 or name.endswith(".bias") or name in ("pos_embed", "cls_token")
        (plain if exempt else decay).append(p)
    return [
        {"params": decay, "weight_decay": WEIGHT_DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]


def make_optimizer(model: OfficialViT, lr: float = 1e-3) -> torch.optim.AdamW:
    """torch's AdamW with EVA-01's settings: fused for `TunedViT`, PyTorch's default otherwise."""
    fused = True if isinstance(model, TunedViT) else None
    groups = parameter_groups(model)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=fused)


def train_step(
    model: OfficialViT,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    inputs: tuple[Tensor, ...],
    target: Tensor,
) -> tuple[Tensor, Tensor]:
    """One whole step: loss, backward, clip to norm 3, AdamW. Returns (loss, gradient norm).

    `inputs` is `model.inputs(mask)`. The official step reads the loss on the host every time."""
    loss = model.loss(target, images, *inputs)
    if not isinstance(model, TunedViT):
        loss.item()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm
