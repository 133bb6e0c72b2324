"""The tuned step with what other libraries bring for it, where they are installed: LayerNorm of Liger
or apex, attention of flash-attn or xFormers, AdamW of apex. In 16 bits, as they are used."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.baselines.training import BETAS, EPS
from eva_fast.baselines.tuned import TunedAttention, TunedViT
from eva_fast.model import ModelSizes

Attend = Callable[[Tensor, float], Tensor]
Norm = Callable[[Tensor, nn.LayerNorm], Tensor]


def _liger(module: Any) -> Norm:
    apply = module.LigerLayerNormFunction.apply
    return lambda x, norm: apply(x, norm.weight, norm.bias, norm.eps)


def _apex_norm(module: Any) -> Norm:
    def run(x: Tensor, norm: nn.LayerNorm) -> Tensor:
        shape = norm.normalized_shape
        return module.fused_layer_norm_affine(x, norm.weight, norm.bias, shape, norm.eps)

    return run


def _flash(module: Any) -> Attend:
    return lambda qkv, scale: module.flash_attn_qkvpacked_func(qkv, softmax_scale=scale)


def _xformers(module: Any) -> Attend:
    return lambda qkv, scale: module.memory_efficient_attention(*qkv.unbind(2), scale=scale)


def _apex_adam(module: Any) -> Callable[[list[dict], float], Any]:
    def make(groups: list[dict], lr: float) -> Any:
        return module.FusedAdam(groups, lr=lr, betas=BETAS, eps=EPS, adam_w_mode=True)

    return make


# Part: (package to install, module, how it is used), the better one first.
KNOWN: dict[str, tuple[tuple[str, str, Callable[[Any], Any]], ...]] = {
    "norm": (
        ("liger-kernel", "liger_kernel.ops.layer_norm", _liger),
        ("apex", "apex.normalization.fused_layer_norm", _apex_norm),
    ),
    "attention": (
        ("flash-attn", "flash_attn", _flash),
        ("xformers", "xformers.ops", _xformers),
    ),
    "optimizer": (("apex", "apex.optimizers", _apex_adam),),
}


def found() -> dict[str, tuple[str, Any]]:
    """{part: (package, what it brings)} of what is installed."""
    parts: dict[str, tuple[str, Any]] = {}
    for part, offers in KNOWN.items():
        for package, name, use in offers:
            if importlib.util.find_spec(name.split(".")[0]) is not None:
                parts[part] = package, use(importlib.import_module(name))
                break
    return parts


def missing() -> str | None:
    """Why there is no such variant here; None where there is."""
    packages = sorted({package for offers in KNOWN.values() for package, _, _ in offers})
    return None if found() else f"none of {', '.join(packages)} is installed"


class LibraryViT(TunedViT):
    """`TunedViT` with the parts that are installed."""

    def __init__(self, sizes: ModelSizes, drop_path: float = 0.0):
        super().__init__(sizes, drop_path)
        parts = found()
        for module in self.modules():
            if "norm" in parts and isinstance(module, nn.LayerNorm):
                _replace_norm(module, parts["norm"][1])
            if "attention" in parts and isinstance(module, TunedAttention):
                _replace_attention(module, parts["attention"][1])


def _replace_norm(norm: nn.LayerNorm, run: Norm) -> None:
    norm.forward = lambda x: run(x, norm)  # type: ignore[method-assign]


def _replace_attention(module: TunedAttention, attend: Attend) -> None:
    def forward(x: Tensor, bias: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = F.linear(x, module.qkv.weight, bias).view(batch, tokens, 3, module.num_heads, -1)
        return module.proj(attend(qkv, module.scale).reshape(batch, tokens, -1))

    module.forward = forward  # type: ignore[method-assign]
