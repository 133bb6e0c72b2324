"""What a pre-norm transformer block consists of, in one form for all libraries.

    x = x + drop1(gamma1 attention(norm1(x)));   x = x + drop2(gamma2 mlp(norm2(x)))

A block is read anew at each call, since anything in it can be replaced at any time: an adapter in
place of a Linear, a hook, dropout in training. What cannot be read exactly is a reason, in words, and
that part runs as the library wrote it.
"""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from eva_fast.ops.shards import is_shard

NORMS = (
    "torch.nn.modules.normalization.LayerNorm",
    "timm.layers.norm.LayerNorm",
    "timm.layers.norm.LayerNormFp32",
    "open_clip.transformer.LayerNorm",
    "open_clip.transformer.LayerNormFp32",
)
OFFICIAL_NORM = "LayerNormWithForceFP32"
"""EVA-01's, in whatever module its file was imported as."""
LINEAR = (
    "torch.nn.modules.linear.Linear",
    "torch.nn.modules.linear.NonDynamicallyQuantizableLinear",
)
IDENTITY = "torch.nn.modules.linear.Identity"
DROPOUT = "torch.nn.modules.dropout.Dropout"


class AttentionPart(NamedTuple):
    """Attention that the fused branch computes."""

    qkv: tuple[Tensor, ...]
    """The weight [3 H d, D], or those of q, k and v."""
    biases: tuple[Tensor | None, ...]
    """One of all [3 H d], or those of q, k (None: 0) and v; (None,): none."""
    proj: Tensor
    proj_bias: Tensor | None
    heads: int
    dropout: float
    """The largest rate at which something here drops in training."""
    dropping: bool
    """Whether it does now: then the library's own runs."""

    @property
    def keys_biased(self) -> bool:
        """Whether k has a bias. Rotary positions turn it, and it has a gradient then."""
        return self.biases[len(self.biases) // 2] is not None


class MlpPart(NamedTuple):
    """An MLP that the fused branch computes."""

    fc1: Tensor
    fc1_bias: Tensor | None
    fc2: Tensor
    fc2_bias: Tensor | None
    kind: str
    """The GELU, as `eva_fast.ops.bias_gelu` names it."""
    dropout: float
    dropping: bool


TURNED_BIAS = "rotary positions turn a bias of k"


class Anatomy(NamedTuple):
    """A block, read."""

    norm1: Any
    """Modules are as the library has them."""
    attention: AttentionPart | str
    """Or why it is left as it is."""
    gamma1: Tensor | None
    drop1: Any
    norm2: Any
    mlp: MlpPart | str
    gamma2: Tensor | None
    drop2: Any


class Dropouts(NamedTuple):
    """Of the dropouts of a part: the largest rate, and whether any drops now."""

    rate: float
    dropping: bool


def class_name(module: Any) -> str:
    """The class of an object with its module, as in "timm.models.eva.EvaBlock"."""
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}"


def short_name(module: Any) -> str:
    """The class alone."""
    return type(module).__qualname__


def watched(module: nn.Module) -> bool:
    """Whether somebody sees or changes what goes in or comes out of it, or replaced its forward."""
    return bool(
        not all(map(_idle, module._forward_hooks.values()))
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


RECORDING = "transformers.utils.output_capturing"


def _idle(hook: Any) -> bool:
    """Whether a hook is the one by which transformers records attention weights, and they are not asked
    for: it stays once they were."""
    if getattr(hook, "__module__", None) != RECORDING:
        return False
    collected = sys.modules[RECORDING]._active_collector.get()
    return collected is None or "attentions" not in collected


def unlike(module: Any, what: str, *names: str) -> str | None:
    """None where `module` is an unwatched one of these classes, else what it is."""
    if class_name(module) not in names:
        return f"{what} is a {short_name(module)}"
    return f"{what} has hooks" if watched(module) else None


def unlike_linear(module: Any, what: str) -> str | None:
    """None where it is a Linear whose weight can be read."""
    found = unlike(module, what, *LINEAR)
    if found is None and is_shard(module.weight):
        return f"{what} is sharded"
    return found


def unlike_norm(module: Any, what: str, width: int) -> str | None:
    """None where it is a LayerNorm of `width` with weight and bias."""
    if short_name(module) != OFFICIAL_NORM or watched(module):
        found = unlike(module, what, *NORMS)
        if found is not None:
            return found
    if module.weight is None or module.bias is None:
        return f"{what} has no weight or no bias"
    if tuple(module.normalized_shape) != (width,):
        return f"{what} is over {tuple(module.normalized_shape)}, not the width, {width}"
    return None


def dropouts(*modules: Any) -> Dropouts | str:
    """What the `nn.Dropout`s (or identities) of a part do; words where one is something else."""
    rate, dropping = 0.0, False
    for module in modules:
        found = unlike(module, "dropout", DROPOUT, IDENTITY)
        if found is not None:
            return found
        p = getattr(module, "p", 0.0)
        rate, dropping = max(rate, p), dropping or (p > 0 and module.training)
    return Dropouts(rate, dropping)


def same_scale(scale: Any, head_dim: int) -> str | None:
    """None where attention divides by the root of the head's width."""
    if not isinstance(scale, float) or abs(scale * head_dim**0.5 - 1) > 1e-6:
        return f"attention scales by {scale}, not by 1/sqrt({head_dim})"
    return None


def gelu_kind(activation: Any) -> tuple[str | None, str | None]:
    """(kind, None) of an activation that the fused MLP has, else (None, why not)."""
    found = unlike(activation, "the MLP's activation", *GELUS)
    if found is not None:
        return None, found
    # transformers' hold a function, which may be the formula written out in Python
    act = getattr(activation, "act", torch.nn.functional.gelu)
    if getattr(act, "func", act) is not torch.nn.functional.gelu:
        return None, "the MLP's activation is GELU written out in Python"
    if getattr(activation, "approximate", "none") == "tanh":
        return "tanh", None
    return GELUS[class_name(activation)], None


GELUS = {
    "torch.nn.modules.activation.GELU": "erf",  # or by tanh, as its `approximate` says
    "timm.layers.activations.GELU": "erf",
    "timm.layers.activations.GELUTanh": "tanh",
    "timm.layers.activations.QuickGELU": "quick",
    "transformers.activations.GELUActivation": "erf",
    "transformers.activations.GELUTanh": "tanh",
    "transformers.activations.PytorchGELUTanh": "tanh",  # the name before transformers 4.56
    "transformers.activations.QuickGELUActivation": "quick",
    "open_clip.transformer.QuickGELU": "quick",
}
"""The kind, as `eva_fast.ops.bias_gelu` names it, of the activations that it has."""


def mlp_part(fc1: Any, activation: Any, fc2: Any, between: Any, *dropped: Any) -> MlpPart | str:
    """fc2(gelu(fc1(x))), `between` an identity behind the GELU or None; `dropped`: its dropouts."""
    kind, obstacle = gelu_kind(activation)
    obstacle = obstacle or unlike_linear(fc1, "fc1") or unlike_linear(fc2, "fc2")
    if obstacle is None and between is not None:
        obstacle = unlike(between, "the norm in the MLP", IDENTITY)
    if obstacle is not None:
        return obstacle
    rates = dropouts(*dropped)
    if isinstance(rates, str):
        return rates
    assert kind is not None
    return MlpPart(fc1.weight, fc1.bias, fc2.weight, fc2.bias, kind, *rates)
