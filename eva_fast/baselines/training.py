"""EVA-01's training step in plain PyTorch: its parameter groups, AdamW and clipping.

Training in 16 bits keeps float32 weights and moments, in one of two ways: the model's parameters are
float32 and autocast casts them (`train_step(autocast=...)`), or the model is cast whole and the
optimiser updates float32 masters (`MasterWeights`), as DeepSpeed does for the official run.
"""

import contextlib
from collections.abc import Callable

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


def make_optimizer(
    model: OfficialViT,
    lr: float = 1e-3,
    kind: Callable[[list[dict], float], torch.optim.Optimizer] | None = None,
) -> "torch.optim.Optimizer | MasterWeights":
    """torch's AdamW with EVA-01's settings: fused for `TunedViT`, PyTorch's default otherwise; or what
    `kind` makes of groups and rate. Over float32 masters where the parameters are 16-bit."""
    fused = True if isinstance(model, TunedViT) else None
    masters: dict[Tensor, Tensor] = {}
    groups = parameter_groups(model)
    if any(p.dtype != torch.float32 for p in model.parameters()):
        masters = {p: p.detach().float() for p in model.parameters()}
        groups = [{**g, "params": [masters[p] for p in g["params"]]} for g in groups]
    if kind is not None:
        optimizer = kind(groups, lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=fused)
    return MasterWeights(optimizer, masters) if masters else optimizer


class MasterWeights:
    """An optimiser over float32 masters of 16-bit parameters.

    Args:
        optimizer: over the masters.
        masters: {parameter: its master}.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, masters: dict[Tensor, Tensor]):
        self.optimizer = optimizer
        self.parameters, self.masters = list(masters), list(masters.values())
        self.gradients = [torch.zeros_like(master) for master in self.masters]
        for master, gradient in zip(self.masters, self.gradients):
            master.grad = gradient

    @property
    def param_groups(self) -> list[dict]:
        """The optimiser's, of masters."""
        return self.optimizer.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Takes the gradients over, updates the masters and rounds them into the parameters."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        torch._foreach_copy_(self.gradients, grads)
        self.optimizer.step()
        torch._foreach_copy_(self.parameters, self.masters)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the parameters' gradients; those of the masters are overwritten."""
        for p in self.parameters:
            p.grad = None


def train_step(
    model: OfficialViT,
    optimizer: "torch.optim.Optimizer | MasterWeights",
    images: Tensor,
    inputs: tuple[Tensor, ...],
    target: Tensor,
    autocast: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One whole step: loss, backward, clip to norm 3, AdamW. Returns (loss, gradient norm).

    `inputs` is `model.inputs(mask)`. autocast: the dtype of the forward's products; None: the
    parameters'. The official step reads the loss on the host every time."""
    with casting(images.device.type, autocast):
        loss = model.loss(target, images, *inputs)
    if not isinstance(model, TunedViT):
        loss.item()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), norm


def casting(device: str, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    """Autocast to `dtype`, or nothing."""
    return contextlib.nullcontext() if dtype is None else torch.autocast(device, dtype)
