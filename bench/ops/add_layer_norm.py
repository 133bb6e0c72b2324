"""Residual add and LayerNorm: (x + branch, LayerNorm(x + branch))."""

import torch
import torch.nn.functional as F

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.baselines.official import EPS
from eva_fast.ops import add_layer_norm

__all__ = ["MODES", "subject"]


def _apex(module):
    def run(x, branch, bias, weight, norm_bias):
        total = x + (branch + bias)
        shape = (x.shape[-1],)
        return total, module.fused_layer_norm_affine(total, weight, norm_bias, shape, EPS)

    return run


def _liger(module):
    def run(x, branch, bias, weight, norm_bias):
        total = x + (branch + bias)
        return total, module.LigerLayerNormFunction.apply(total, weight, norm_bias, EPS)

    return run


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    dim = shape.sizes.embed_dim
    x = shape.randn(shape.batch, shape.tokens, dim).requires_grad_()
    branch = shape.randn(shape.batch, shape.tokens, dim, seed=1).requires_grad_()
    bias, weight, norm_bias = (
        (shape.randn(dim, seed=s) * 0.1 + one).requires_grad_()
        for s, one in ((2, 0), (3, 1), (4, 0))
    )

    def reference(x, branch, bias, weight, norm_bias):
        total = x + (branch + bias)
        y = F.layer_norm(total.float(), (dim,), weight.float(), norm_bias.float(), EPS)
        return total, y.type_as(total)

    def tuned(x, branch, bias, weight, norm_bias):
        total = x + (branch + bias)
        return total, F.layer_norm(total, (dim,), weight, norm_bias, EPS)

    def ours(x, branch, bias, weight, norm_bias):
        return add_layer_norm(x, branch, bias, None, weight, norm_bias, EPS)[:2]

    kit.add("reference", reference)
    kit.add("tuned", tuned)
    kit.add("eva_fast", ours)
    kit.add_compiled()
    kit.add_library("apex", "apex.normalization.fused_layer_norm", _apex)
    kit.add_library("liger", "liger_kernel.ops.layer_norm", _liger)
    return differentiable(
        "add_layer_norm",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [x, branch, bias, weight, norm_bias],
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
