"""`Block` of EVA-01's code (modeling_finetune.py, which its pre-training uses too), as it stands in
people's checkouts: pre-norm, with or without LayerScale and biases of relative positions.
"""

from typing import Any

from torch import Tensor

from eva_fast.acceleration.anatomy import (
    IDENTITY,
    Anatomy,
    AttentionPart,
    MlpPart,
    class_name,
    dropouts,
    mlp_part,
    same_scale,
    short_name,
    unlike_linear,
    unlike_norm,
    watched,
)
from eva_fast.acceleration.classes import original_class
from eva_fast.acceleration.family import Family
from eva_fast.acceleration.fused import run, unfit

CHILDREN = {"norm1", "attn", "drop_path", "norm2", "mlp"}
ATTENTION = {"qkv", "attn_drop", "proj", "proj_drop"}
MLP = {"fc1", "act", "fc2", "drop"}


def _unlike(module: Any, block: Any, name: str, children: set[str]) -> str | None:
    """None where `module` is the class of that name in the block's own file."""
    if class_name(module) != f"{original_class(block).__module__}.{name}":
        return f"{name} is a {short_name(module)}"
    if not children <= set(module._modules):
        return f"{name} has {', '.join(sorted(module._modules))}"
    return f"{name} has hooks" if watched(module) else None


def _attention(block: Any, width: int) -> AttentionPart | str:
    attn = block.attn
    obstacle = _unlike(attn, block, "Attention", ATTENTION)
    if obstacle is None and not set(attn._modules) <= ATTENTION | {"rel_pos_bias"}:
        obstacle = f"Attention has {', '.join(sorted(attn._modules))}"
    obstacle = (
        obstacle
        or unlike_norm(block.norm1, "norm1", width)
        or unlike_linear(attn.qkv, "qkv")
        or unlike_linear(attn.proj, "proj")
        or same_scale(attn.scale, attn.qkv.weight.shape[0] // 3 // attn.num_heads)
    )
    if obstacle is not None:
        return obstacle
    rates = dropouts(attn.attn_drop, attn.proj_drop)
    if isinstance(rates, str):
        return rates
    biases = (None,) if attn.q_bias is None else (attn.q_bias, None, attn.v_bias)
    return AttentionPart(
        (attn.qkv.weight,), biases, attn.proj.weight, attn.proj.bias, attn.num_heads, *rates
    )


def _mlp(block: Any, width: int) -> MlpPart | str:
    mlp = block.mlp
    obstacle = _unlike(mlp, block, "Mlp", MLP) or unlike_norm(block.norm2, "norm2", width)
    if obstacle is not None:
        return obstacle
    return mlp_part(mlp.fc1, mlp.act, mlp.fc2, None, mlp.drop)


def read(block: Any) -> Anatomy | str:
    """A pre-norm block."""
    if set(block._modules) != CHILDREN or not hasattr(block, "gamma_1"):
        return f"it has {', '.join(sorted(set(block._modules) ^ CHILDREN))} more or less"
    if getattr(block, "postnorm", False):
        return "it normalises behind its branches, not before"
    drop = block.drop_path
    if class_name(drop) != IDENTITY:
        obstacle = _unlike(drop, block, "DropPath", set())
        if obstacle is not None:
            return obstacle
    width = len(block.norm1.weight) if getattr(block.norm1, "weight", None) is not None else 0
    attention, mlp = _attention(block, width), _mlp(block, width)
    gamma1, gamma2 = block.gamma_1, block.gamma_2
    return Anatomy(block.norm1, attention, gamma1, drop, block.norm2, mlp, gamma2, drop)


def _score_bias(attn: Any, shared: Tensor | None) -> Tensor | None:
    """The sum of the biases [H, T, T]: its own, of whole or of decoupled offsets, and all blocks'."""
    found = [shared]
    table = getattr(attn, "relative_position_bias_table", None)
    if table is not None:
        index = attn.relative_position_index
        found.append(table[index.flatten()].view(*index.shape, -1).permute(2, 0, 1))
    if getattr(attn, "rel_pos_bias", None) is not None:
        found.append(attn.rel_pos_bias())
    biases = [
        bias.float() if bias.dtype.itemsize < 4 else bias for bias in found if bias is not None
    ]
    return sum(biases[1:], biases[0]) if biases else None


def forward(self: Any, x: Any, rel_pos_bias: Any = None, attn_mask: Any = None) -> Any:
    """`modeling_finetune.Block.forward`."""
    found = None
    anatomy: Any = "tokens" if unfit(x) else read(self)
    if not isinstance(anatomy, str):
        attn, bias = self.attn, None
        if attn_mask is not None:
            anatomy = anatomy._replace(attention="a mask")
        elif not isinstance(anatomy.attention, str):
            bias = _score_bias(attn, rel_pos_bias)
        found = run(
            anatomy,
            x,
            lambda y: attn(y, rel_pos_bias=rel_pos_bias, attn_mask=attn_mask),
            self.mlp,
            bias,
        )
    if found is None:
        return original_class(self).forward(self, x, rel_pos_bias, attn_mask)
    return found


FAMILY = Family(
    names=("modeling_finetune.Block",),
    read=read,
    forward=forward,
    own=lambda block, x: block(x),
)
