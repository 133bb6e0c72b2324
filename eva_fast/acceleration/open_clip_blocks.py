"""open_clip's `ResidualAttentionBlock`, in its image towers; and in its text towers, whose mask keeps
their attention open_clip's. (A tower of timm's inside an open_clip model is timm's.)
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from eva_fast.acceleration.anatomy import (
    IDENTITY,
    Anatomy,
    AttentionPart,
    mlp_part,
    short_name,
    unlike,
    unlike_linear,
    unlike_norm,
)
from eva_fast.acceleration.classes import original_class
from eva_fast.acceleration.family import Family
from eva_fast.acceleration.fused import run, unfit

CHILDREN = {"ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2"}
LAYER_SCALE = "open_clip.transformer.LayerScale"
_NO_DROP = nn.Identity()


def _attention(attn: Any, norm: Any, width: int) -> AttentionPart | str:
    """`torch.nn.MultiheadAttention` of tokens with themselves, batch first."""
    obstacle = (
        unlike(attn, "attention", "torch.nn.modules.activation.MultiheadAttention")
        or unlike_norm(norm, "ln_1", width)
        or unlike_linear(attn.out_proj, "out_proj")
    )
    if obstacle is not None:
        return obstacle
    if attn.in_proj_weight is None or attn.bias_k is not None or attn.add_zero_attn:
        return "attention has a weight each for q, k and v, or more keys than tokens"
    if not attn.batch_first:
        return "attention has the batch second"
    return AttentionPart(
        (attn.in_proj_weight,),
        (attn.in_proj_bias,),
        attn.out_proj.weight,
        attn.out_proj.bias,
        attn.num_heads,
        attn.dropout,
        attn.dropout > 0 and attn.training,
    )


def _gamma(module: Any, what: str) -> Tensor | str | None:
    obstacle = unlike(module, what, IDENTITY, LAYER_SCALE)
    return obstacle or getattr(module, "gamma", None)


def read(block: Any) -> Anatomy | str:
    """A block of image tokens or of words."""
    if set(block._modules) != CHILDREN:
        return f"it has {', '.join(sorted(set(block._modules) ^ CHILDREN))} more or less"
    gamma1, gamma2 = _gamma(block.ls_1, "ls_1"), _gamma(block.ls_2, "ls_2")
    if isinstance(gamma1, str) or isinstance(gamma2, str):
        return gamma1 if isinstance(gamma1, str) else str(gamma2)
    width = len(block.ln_1.weight) if getattr(block.ln_1, "weight", None) is not None else 0
    parts = block.mlp._modules
    mlp: Any = unlike_norm(block.ln_2, "ln_2", width)
    if mlp is None:
        mlp = unlike(block.mlp, "the MLP", "torch.nn.modules.container.Sequential")
    if mlp is None and list(parts) != ["c_fc", "gelu", "c_proj"]:
        mlp = f"the MLP has {', '.join(parts)}"
    if mlp is None:
        mlp = mlp_part(parts["c_fc"], parts["gelu"], parts["c_proj"], None)
    attention = _attention(block.attn, block.ln_1, width)
    return Anatomy(block.ln_1, attention, gamma1, _NO_DROP, block.ln_2, mlp, gamma2, _NO_DROP)


def forward(self: Any, q_x: Any, k_x: Any = None, v_x: Any = None, attn_mask: Any = None) -> Any:
    """`open_clip.transformer.ResidualAttentionBlock.forward`."""
    found = None
    anatomy: Any = "other keys" if k_x is not None or v_x is not None or unfit(q_x) else read(self)
    if not isinstance(anatomy, str):
        if attn_mask is not None:
            anatomy = anatomy._replace(attention="a mask")
        found = run(anatomy, q_x, lambda y: self.attention(y, attn_mask=attn_mask), self.mlp)
    if found is None:
        return original_class(self).forward(self, q_x, k_x, v_x, attn_mask)
    return found


def _masked(block: nn.Module, owners: Sequence[nn.Module]) -> str | None:
    """A transformer of words is in a network with a mask, and in no tower of images."""
    if any(short_name(owner) == "VisionTransformer" for owner in owners):
        return None
    masked = any(getattr(owner, "attn_mask", None) is not None for owner in owners)
    return "words have a mask" if masked else None


FAMILIES = (
    Family(
        names=("open_clip.transformer.ResidualAttentionBlock",),
        read=read,
        forward=forward,
        own=lambda block, x: block(x),
        called_with=_masked,
    ),
)
