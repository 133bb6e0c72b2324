"""timm's pre-norm blocks: `VisionTransformer`'s (ViT, DeiT, DeiT III, DINOv2, SigLIP, CLIP, FlexiViT),
`Eva`'s (EVA, EVA-02, DINOv3, ViTs with rotary positions) and `Beit`'s.

Attention with normalised q and k, a gate or a norm behind it is timm's own, and so are rotary positions
that heads or images have of their own, and an MLP that is no Linear, GELU, Linear.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast.acceleration.anatomy import (
    IDENTITY,
    TURNED_BIAS,
    Anatomy,
    AttentionPart,
    MlpPart,
    dropouts,
    mlp_part,
    same_scale,
    short_name,
    unlike,
    unlike_linear,
    unlike_norm,
)
from eva_fast.acceleration.classes import original_class
from eva_fast.acceleration.family import Family
from eva_fast.acceleration.fused import run, unfit
from eva_fast.ops.rotary import Angles

ATTENTION = (
    "timm.layers.attention.Attention",
    "timm.layers.attention.AttentionRope",
    "timm.models.vision_transformer.Attention",  # before timm 1.0.20
    "timm.models.eva.EvaAttention",
    "timm.models.beit.Attention",
)
MLP = "timm.layers.mlp.Mlp"
DROP_PATH = (
    "timm.layers.drop.DropPath",
    "eva_fast.model.networks.drop_path.DrawnDropPath",  # of students, drawn before the forward
)
LAYER_SCALE = ("timm.layers.layer_scale.LayerScale", "timm.models.vision_transformer.LayerScale")


def attention_of(attn: Any, norm: Any, width: int) -> AttentionPart | str:
    """timm's attentions, which differ in where their biases are."""
    obstacle = (
        unlike(attn, "attention", *ATTENTION)
        or unlike_norm(norm, "norm1", width)
        or _extras(attn)
        or unlike_linear(attn.proj, "proj")
    )
    if obstacle is not None:
        return obstacle
    linears = (attn.qkv,) if attn.qkv is not None else (attn.q_proj, attn.k_proj, attn.v_proj)
    for linear in linears:
        obstacle = obstacle or unlike_linear(linear, "a projection to q, k and v")
    heads = attn.num_heads
    if obstacle is None:
        inner = sum(linear.weight.shape[0] for linear in linears) // 3
        obstacle = same_scale(attn.scale, inner // heads)
    if obstacle is None and attn.proj.weight.shape[0] != width:
        obstacle = f"attention gives {attn.proj.weight.shape[0]} values, not the width, {width}"
    if obstacle is not None:
        return obstacle
    rates = dropouts(attn.attn_drop, attn.proj_drop)
    if isinstance(rates, str):
        return rates
    biases: tuple[Tensor | None, ...] = tuple(linear.bias for linear in linears)
    if getattr(attn, "q_bias", None) is not None:
        biases = (attn.q_bias, None, attn.v_bias)  # k_bias is zeros
    elif biases[0] is None:
        biases = (None,)
    return AttentionPart(
        tuple(linear.weight for linear in linears),
        biases,
        attn.proj.weight,
        attn.proj.bias,
        heads,
        *rates,
    )


def _extras(attn: Any) -> str | None:
    """None where attention is softmax(q k^T) v and a projection."""
    for name, what in (
        ("q_norm", "normalised q"),
        ("k_norm", "normalised k"),
        ("norm", "a norm behind it"),
    ):
        module = getattr(attn, name, None)
        if module is not None and unlike(module, what, IDENTITY) is not None:
            return f"attention with {what}"
    if getattr(attn, "gate", None) is not None:
        return "attention with a gate"
    if getattr(attn, "num_kv_groups", 1) != 1:
        return "attention whose heads share keys"
    return None


def mlp_of(mlp: Any, norm: Any, width: int) -> MlpPart | str:
    """timm's Mlp."""
    obstacle = unlike(mlp, "the MLP", MLP) or unlike_norm(norm, "norm2", width)
    if obstacle is not None:
        return obstacle
    return mlp_part(mlp.fc1, mlp.act, mlp.fc2, getattr(mlp, "norm", None), mlp.drop1, mlp.drop2)


def _scale_of(block: Any, number: int) -> Tensor | str | None:
    """LayerScale's gamma, a parameter of the block or of a module; words where it is something else."""
    if not hasattr(block, f"ls{number}"):
        return getattr(block, f"gamma_{number}")
    module = getattr(block, f"ls{number}")
    obstacle = unlike(module, f"ls{number}", IDENTITY, *LAYER_SCALE)
    return obstacle or getattr(module, "gamma", None)


CHILDREN = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}


def read(block: Any) -> Anatomy | str:
    """Any of timm's three blocks, which have the same parts by the same names."""
    unknown = set(block._modules) - CHILDREN
    if unknown:
        return f"it has {', '.join(sorted(unknown))}"
    gamma1, gamma2 = _scale_of(block, 1), _scale_of(block, 2)
    if isinstance(gamma1, str) or isinstance(gamma2, str):
        return gamma1 if isinstance(gamma1, str) else str(gamma2)
    for drop in (block.drop_path1, block.drop_path2):
        obstacle = unlike(drop, "drop path", IDENTITY, *DROP_PATH)
        if obstacle is not None:
            return obstacle
    width = block.norm1.weight.shape[0] if getattr(block.norm1, "weight", None) is not None else 0
    return Anatomy(
        block.norm1,
        attention_of(block.attn, block.norm1, width),
        gamma1,
        block.drop_path1,
        block.norm2,
        mlp_of(block.mlp, block.norm2, width),
        gamma2,
        block.drop_path2,
    )


def _run(
    block: Any,
    x: Any,
    attention: str | None,
    bias: Any,
    call: dict[str, Any],
    angles: Angles | None = None,
) -> Tensor | None:
    """The block on `x`; `attention`: why its attention is timm's own in this call, whose arguments are
    `call`. None: all is timm's."""
    if unfit(x):
        return None
    anatomy = read(block)
    if isinstance(anatomy, str):
        return None
    if attention is not None:
        anatomy = anatomy._replace(attention=attention)
    return run(anatomy, x, lambda y: block.attn(y, **call), block.mlp, bias, angles)


def vit_forward(self: Any, x: Any, attn_mask: Any = None, is_causal: bool = False) -> Any:
    """`timm.models.vision_transformer.Block.forward`."""
    call = (
        {"attn_mask": attn_mask, "is_causal": is_causal}
        if attn_mask is not None or is_causal
        else {}
    )
    found = _run(self, x, "a mask" if call else None, None, call)
    return original_class(self).forward(self, x, **call) if found is None else found


def eva_forward(
    self: Any, x: Any, rope: Any = None, attn_mask: Any = None, is_causal: bool = False
) -> Any:
    """`timm.models.eva.EvaBlock.forward`."""
    call = {"rope": rope, "attn_mask": attn_mask} | ({"is_causal": True} if is_causal else {})
    angles = None if rope is None or unfit(x) else _angles(self.attn, rope, x.shape[1])
    other = (rope is not None and angles is None) or attn_mask is not None or is_causal
    found = _run(self, x, "other positions or a mask" if other else None, None, call, angles)
    return original_class(self).forward(self, x, **call) if found is None else found


def beit_forward(self: Any, x: Any, shared_rel_pos_bias: Any = None) -> Any:
    """`timm.models.beit.Block.forward`."""
    bias = None
    if not unfit(x):
        bias = _score_bias(self.attn, shared_rel_pos_bias, x.shape[1])
    if isinstance(bias, str):
        found = None
    else:
        found = _run(self, x, None, bias, {"shared_rel_pos_bias": shared_rel_pos_bias})
    if found is None:
        return original_class(self).forward(self, x, shared_rel_pos_bias=shared_rel_pos_bias)
    return found


def _score_bias(attn: Any, shared: Any, tokens: int) -> Tensor | str | None:
    """The bias [H, T, T] of the scores; words where it is not one for all images."""
    bias = shared
    if getattr(attn, "relative_position_bias_table", None) is not None:
        own = attn._get_rel_pos_bias()
        bias = own if shared is None else own + shared
    if bias is None:
        return None
    if bias.dim() == 4 and bias.shape[0] == 1:
        bias = bias[0]
    if tuple(bias.shape) != (attn.num_heads, tokens, tokens):
        return "a bias of the scores that differs between images"
    return bias


def _angles(attn: Any, rope: Any, tokens: int) -> Angles | None:
    """Rotary positions that all heads of all images share: sines and cosines side by side, of the
    tokens behind the prefix. None where they are others."""
    width = attn.proj.weight.shape[1] // attn.num_heads
    placed = (tokens - attn.num_prefix_tokens, 2 * width)
    if not isinstance(rope, Tensor) or tuple(rope.shape) != placed or rope.requires_grad:
        return None
    sin, cos = rope.chunk(2, -1)
    return Angles(sin, cos, bool(getattr(attn, "rotate_half", False)))


def _rotary(block: Any, owners: Sequence[nn.Module]) -> str | None:
    """Why a network's rotary positions leave attention to timm."""
    rope = getattr(owners[0], "rope", None) if owners else None
    if rope is None:
        return None
    if getattr(owners[0], "rope_mixed", False):
        return f"rotary positions of each head ({short_name(rope)})"
    anatomy = read(block)
    attention = anatomy if isinstance(anatomy, str) else anatomy.attention
    return None if isinstance(attention, str) or not attention.keys_biased else TURNED_BIAS


def _placed(block: Any, x: Tensor) -> Tensor:
    """A block whose tokens stand somewhere, where that is computed here."""
    attn = block.attn
    width = attn.proj.weight.shape[1] // attn.num_heads
    pairs = torch.linspace(0, 3, (x.shape[1] - attn.num_prefix_tokens) * (width // 2)).to(x)
    angle = pairs.view(-1, width // 2)
    turned = (
        angle.repeat(1, 2) if getattr(attn, "rotate_half", False) else angle.repeat_interleave(2, 1)
    )
    return block(x, rope=torch.cat((turned.sin(), turned.cos()), 1))


FAMILIES = (
    Family(
        names=("timm.models.vision_transformer.Block",),
        read=read,
        forward=vit_forward,
        own=lambda block, x: block(x),
    ),
    Family(
        names=("timm.models.eva.EvaBlock",),
        read=read,
        forward=eva_forward,
        own=_placed,
        called_with=_rotary,
    ),
    Family(
        names=("timm.models.beit.Block",),
        read=read,
        forward=beit_forward,
        own=lambda block, x: block(x),
    ),
)
