"""transformers' pre-norm layers of vision models: ViT, DeiT, MAE, CLIP, SigLIP, DINOv2, DINOv3.

q, k and v have a Linear each, whose weights are put side by side for each call. Gradient checkpointing
is transformers': it wraps the forward of every subclass of its layers. Where attention weights are
asked for, its own attention runs, by the hook that records them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.acceleration.anatomy import (
    IDENTITY,
    TURNED_BIAS,
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
from eva_fast.ops.rotary import Angles

ATTENTIONS = ("eager", "sdpa", "flex_attention")
"""Implementations of its attention that compute softmax(q k^T) v, beside the flash ones."""


class _Names(NamedTuple):
    """What a layer calls its parts; None: it has none."""

    norm1: str
    attention: str
    proj: str
    norm2: str
    scale: str | None = None
    """LayerScale's modules, numbered."""
    drop_path: str | None = None
    dropout: str | None = None
    """Behind attention and MLP."""


_VIT = _Names("layernorm_before", "attention", "o_proj", "layernorm_after", dropout="dropout")
_CLIP = _Names("layer_norm1", "self_attn", "out_proj", "layer_norm2")
_DINO = _Names("norm1", "attention", "o_proj", "norm2", "layer_scale", "drop_path")
LAYERS = {
    "transformers.models.vit.modeling_vit.ViTLayer": _VIT,
    "transformers.models.deit.modeling_deit.DeiTLayer": _VIT,
    "transformers.models.vit_mae.modeling_vit_mae.ViTMAELayer": _VIT,
    "transformers.models.clip.modeling_clip.CLIPEncoderLayer": _CLIP,
    "transformers.models.siglip.modeling_siglip.SiglipEncoderLayer": _CLIP,
    "transformers.models.siglip2.modeling_siglip2.Siglip2EncoderLayer": _CLIP,
    "transformers.models.dinov2.modeling_dinov2.Dinov2Layer": _DINO,
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers."
    "Dinov2WithRegistersLayer": _DINO,
    "transformers.models.dinov3_vit.modeling_dinov3_vit.DINOv3ViTLayer": _DINO,
}

ROTARY = "DINOv3ViTLayer"
"""The layer that is given rotary positions: cosines and sines of all tokens but the first few."""


def _names_of(layer: nn.Module) -> _Names:
    kind = original_class(layer)
    return LAYERS[f"{kind.__module__}.{kind.__qualname__}"]


def _beside(module: Any, layer: nn.Module, ending: str, what: str) -> str | None:
    """None where `module` is of the layer's own file and called so, and nobody watches it."""
    kind = type(module)
    if kind.__module__ != original_class(layer).__module__ or not kind.__qualname__.endswith(
        ending
    ):
        return f"{what} is a {short_name(module)}"
    return f"{what} has hooks" if watched(module) else None


def _attention(layer: Any, names: _Names, width: int) -> AttentionPart | str:
    attn = getattr(layer, names.attention)
    if type(attn.config).__name__.endswith("TextConfig"):
        return "words have a mask"
    obstacle = _beside(attn, layer, "Attention", "attention")
    if obstacle is None and set(attn._modules) != {"q_proj", "k_proj", "v_proj", names.proj}:
        obstacle = f"attention has {', '.join(sorted(attn._modules))}"
    if obstacle is not None:
        return obstacle
    proj, linears = getattr(attn, names.proj), (attn.q_proj, attn.k_proj, attn.v_proj)
    obstacle = unlike_norm(getattr(layer, names.norm1), names.norm1, width) or unlike_linear(
        proj, names.proj
    )
    for linear in linears:
        obstacle = obstacle or unlike_linear(linear, "a projection to q, k and v")
    if obstacle is not None:
        return obstacle
    heads = getattr(attn, "num_heads", None) or attn.num_attention_heads
    chosen = attn.config._attn_implementation
    scale = attn.scale if hasattr(attn, "scale") else attn.scaling
    obstacle = same_scale(scale, linears[0].weight.shape[0] // heads)
    if chosen not in ATTENTIONS and not chosen.startswith("flash_attention"):
        obstacle = f"attention is {chosen!r}"
    if len({tuple(linear.weight.shape) for linear in linears}) != 1:
        obstacle = "q, k and v differ in width"
    if getattr(attn, "is_causal", False):
        obstacle = "attention is causal"
    if obstacle is not None:
        return obstacle
    behind = _behind(layer, names)
    if isinstance(behind, str):
        return behind
    rate = attn.dropout if hasattr(attn, "dropout") else attn.attention_dropout
    biases: tuple[Tensor | None, ...] = tuple(linear.bias for linear in linears)
    if biases[0] is None or biases[2] is None:
        if any(bias is not None for bias in biases):
            return "not q and v both have a bias"
        biases = (None,)
    return AttentionPart(
        tuple(linear.weight for linear in linears),
        biases,
        proj.weight,
        proj.bias,
        heads,
        max(rate, behind.rate),
        behind.dropping or (rate > 0 and attn.training),
    )


def _behind(layer: Any, names: _Names) -> Any:
    """The dropout behind a branch, or words."""
    return dropouts() if names.dropout is None else dropouts(getattr(layer, names.dropout))


def _mlp(layer: Any, names: _Names, width: int) -> MlpPart | str:
    mlp = layer.mlp
    obstacle = _beside(mlp, layer, "MLP", "the MLP")
    if obstacle is None and set(mlp._modules) != {"activation_fn", "fc1", "fc2"}:
        found = [name for name in ("activation_fn", "act_fn") if name in mlp._modules]
        if not found or set(mlp._modules) != {found[0], "up_proj", "down_proj"}:
            obstacle = f"the MLP has {', '.join(sorted(mlp._modules))}"
    obstacle = obstacle or unlike_norm(getattr(layer, names.norm2), names.norm2, width)
    if obstacle is not None:
        return obstacle
    last = () if names.dropout is None else (getattr(layer, names.dropout),)
    if "fc1" in mlp._modules:
        return mlp_part(mlp.fc1, mlp.activation_fn, mlp.fc2, None, *last)
    activation = mlp._modules.get("activation_fn") or mlp._modules.get("act_fn")
    return mlp_part(mlp.up_proj, activation, mlp.down_proj, None, *last)


def read(layer: Any) -> Anatomy | str:
    """Any of the layers."""
    names = _names_of(layer)
    scales = () if names.scale is None else (f"{names.scale}1", f"{names.scale}2")
    others = (names.drop_path, names.dropout)
    parts = {names.norm1, names.attention, names.norm2, "mlp", *scales, *others} - {None}
    if set(layer._modules) != parts:
        return f"it has {', '.join(sorted(layer._modules))}"
    for scale in scales:
        obstacle = _beside(getattr(layer, scale), layer, "LayerScale", scale)
        if obstacle is not None:
            return obstacle
    drop = nn.Identity() if names.drop_path is None else getattr(layer, names.drop_path)
    if class_name(drop) != IDENTITY:
        obstacle = _beside(drop, layer, "DropPath", "drop path")
        if obstacle is not None:
            return obstacle
    norm1, norm2 = getattr(layer, names.norm1), getattr(layer, names.norm2)
    width = len(norm1.weight) if getattr(norm1, "weight", None) is not None else 0
    gammas = [getattr(layer, scale).lambda1 for scale in scales] or [None, None]
    attention, mlp = _attention(layer, names, width), _mlp(layer, names, width)
    return Anatomy(norm1, attention, gammas[0], drop, norm2, mlp, gammas[1], drop)


HARMLESS = ("output_hidden_states", "return_dict", "use_cache")
"""Arguments that a layer passes on and that change nothing in it."""


def forward(
    self: Any, hidden_states: Any, attention_mask: Any = None, *rest: Any, **options: Any
) -> Any:
    """A layer's forward. Anything that it is given beside tokens is its own attention's business."""
    anatomy: Any = "more arguments" if rest or unfit(hidden_states) else read(self)
    found = None
    if not isinstance(anatomy, str):
        angles = _angles(self, options.get("position_embeddings"), hidden_states.shape[1])
        harmless = HARMLESS if angles is None else (*HARMLESS, "position_embeddings")
        given = [v for k, v in options.items() if k not in harmless]
        if attention_mask is not None or any(v is not None and v is not False for v in given):
            anatomy = anatomy._replace(attention="a mask or positions")
        names = _names_of(self)
        attn = getattr(self, names.attention)
        dropout = (lambda x: x) if names.dropout is None else getattr(self, names.dropout)
        found = run(
            anatomy,
            hidden_states,
            lambda y: dropout(attn(y, attention_mask=attention_mask, **options)[0]),
            lambda y: dropout(self.mlp(y)),
            angles=angles,
        )
    if found is None:
        return original_class(self).forward(self, hidden_states, attention_mask, *rest, **options)
    return found


def _own(layer: Any, x: Tensor) -> Tensor:
    """Without a mask; all but the first token somewhere."""
    if original_class(layer).__qualname__ != ROTARY:
        return layer(x, attention_mask=None)
    pairs = x.shape[2] // layer.attention.num_heads // 2
    angles = torch.linspace(0, 3, (x.shape[1] - 1) * pairs).to(x).view(-1, pairs).repeat(1, 2)
    return layer(x, position_embeddings=(angles.cos(), angles.sin()))


def _angles(layer: Any, given: Any, tokens: int) -> Angles | None:
    """Rotary positions that all heads of all images share; None where they are others or none."""
    if original_class(layer).__qualname__ != ROTARY or not isinstance(given, tuple):
        return None
    cos, sin = given
    width = layer.attention.q_proj.weight.shape[0] // layer.attention.num_heads
    fit = cos.shape == sin.shape and cos.dim() == 2 and cos.shape[1] == width
    if not fit or len(cos) > tokens or cos.requires_grad or sin.requires_grad:
        return None
    return Angles(sin, cos, True)


def _turns_a_bias(layer: Any, owners: Sequence[nn.Module]) -> str | None:
    biased = (
        original_class(layer).__qualname__ == ROTARY and layer.attention.k_proj.bias is not None
    )
    return TURNED_BIAS if biased else None


def _for_the_cpu(layer: Any) -> None:
    """The copy of a layer, whose configuration is a copy too, on an attention that runs anywhere."""
    getattr(layer, _names_of(layer).attention).config._attn_implementation = "eager"


FAMILIES = (
    Family(
        names=tuple(LAYERS),
        read=read,
        forward=forward,
        own=_own,
        called_with=_turns_a_bias,
        prepare=_for_the_cpu,
    ),
)
