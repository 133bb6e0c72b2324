"""Swin V2's stages on the fused path (Liu et al. 2022; Feature Distillation's code and names).

    block   x + norm1(attn(x)), then x + norm2(mlp(x)): the norm comes after the branch
    merge   the four tokens of a 2x2 square side by side, projected to twice the width, normalised

Within a stage tokens lie window after window, and a merge writes them in the next stage's order.
`plain_swin` has the same in plain PyTorch.
"""

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import LayerNorm, rows_of
from eva_fast.layers.inputs import IMAGENET_MEAN, IMAGENET_STD
from eva_fast.layers.linear import Linear
from eva_fast.layers.patch_embed import PatchConv, patch_rows
from eva_fast.layers.post_norm import add_normed, add_normed_backward
from eva_fast.layers.recompute import run_branches
from eva_fast.layers.stream import Scales, drop_path_scale
from eva_fast.layers.window import Windows, inverse, register_constants, squares
from eva_fast.layers.window_attention import WindowAttention
from eva_fast.ops.bias_gelu import bias_gelu_backward, bias_gelu_forward
from eva_fast.ops.linear import linear, matmul, weight_gradient

LAYER_NORM_EPS = 1e-5


class PatchEmbed(nn.Module):
    """Patch convolution and norm: [B, 3, H, W] -> [B, N, D], window after window."""

    order: Tensor

    def __init__(self, patch_size: int, embed_dim: int, windows: Windows):
        super().__init__()
        self.proj = PatchConv(3, embed_dim, patch_size, patch_size)
        self.norm = LayerNorm(embed_dim, eps=LAYER_NORM_EPS)
        register_constants(self, order=windows.order())

    def forward(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        patch = self.proj.kernel_size[0]
        rows = patch_rows(images.contiguous(), patch, dtype, IMAGENET_MEAN, IMAGENET_STD)
        weight, copy = self.proj.matrix(dtype)
        return self.norm(linear(rows.index_select(1, self.order), weight, self.proj.bias, copy))


class _MlpBranch(torch.autograd.Function):
    """x + scale LN(fc2(gelu(fc1(x)))). It keeps x, fc1's and fc2's results and row statistics."""

    @staticmethod
    def forward(
        ctx, x, scale, fc1_weight, fc1_bias, fc2_weight, fc2_bias, norm_weight, norm_bias, fc1_copy,
        fc2_copy, eps,
    ):  # fmt: skip
        fc1_used = fc1_weight if fc1_copy is None else fc1_copy
        fc2_used = fc2_weight if fc2_copy is None else fc2_copy
        hidden = matmul(rows_of(x), fc1_used.t())
        h = matmul(bias_gelu_forward(hidden, fc1_bias), fc2_used.t(), fc2_bias.to(x.dtype))
        h = h.view(x.shape)
        total, mean, rstd = add_normed(x, h, scale, norm_weight, norm_bias, eps)
        ctx.save_for_backward(
            x, scale, hidden, fc1_bias, h, mean, rstd, norm_weight, norm_bias, fc1_used, fc2_used
        )
        ctx.weight_dtypes = fc1_weight.dtype, fc2_weight.dtype
        ctx.fc2_bias_dtype = fc2_bias.dtype
        return total

    @staticmethod
    def backward(ctx, dtotal):
        x, scale, hidden, fc1_bias, h, mean, rstd, norm_weight, norm_bias, w1, w2 = (
            ctx.saved_tensors
        )
        dh, dnorm_weight, dnorm_bias, dfc2_bias = add_normed_backward(
            dtotal, h, mean, rstd, scale, norm_weight, norm_bias
        )
        dh = rows_of(dh)
        dhidden, g, dfc1_bias = bias_gelu_backward(matmul(dh, w2), hidden, fc1_bias, want_g=True)
        dw2 = weight_gradient(dh, g, ctx.weight_dtypes[1])
        dw1 = weight_gradient(dhidden, rows_of(x), ctx.weight_dtypes[0])
        dx = matmul(dhidden, w1).view(x.shape).add_(dtotal)
        return (
            dx, None, dw1, dfc1_bias, dw2, dfc2_bias.to(ctx.fc2_bias_dtype), dnorm_weight,
            dnorm_bias, None, None, None,
        )  # fmt: skip


class Mlp(nn.Module):
    """Linear, exact GELU, Linear, with the norm after it: `mlp(x, norm, scale)` is
    x + scale norm(mlp(x))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor, norm: nn.LayerNorm, scale: Tensor | None) -> Tensor:
        fc1, fc2 = self.fc1.matrix(x.dtype), self.fc2.matrix(x.dtype)
        return _MlpBranch.apply(
            x, scale, fc1.weight, self.fc1.bias, fc2.weight, self.fc2.bias, norm.weight, norm.bias,
            fc1.copy, fc2.copy, norm.eps,
        )  # fmt: skip


class Block(nn.Module):
    """x + drop_path(norm1(attn(x))), then x + drop_path(norm2(mlp(x))), of x [B, N, C]; checkpointed
    where `recompute` is set. scales: drop-path's factors where they were drawn for all blocks."""

    def __init__(self, dim: int, num_heads: int, hidden: int, drop_path: float, windows: Windows):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = WindowAttention(dim, num_heads, windows)
        self.norm2 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden)
        self.drop_path = drop_path
        self.recompute = False

    def forward(self, x: Tensor, scales: Scales | None = None) -> Tensor:
        if scales is None:
            rate, training = self.drop_path, self.training
            scales = drop_path_scale(rate, training, x), drop_path_scale(rate, training, x)
        return run_branches(self, self._branches, *scales, x)

    def _branches(self, attn_scale: Tensor | None, mlp_scale: Tensor | None, x: Tensor) -> Tensor:
        return self.mlp(self.attn(x, self.norm1, attn_scale), self.norm2, mlp_scale)


class _Reordered(torch.autograd.Function):
    """Tokens in another order; the gradient is the other gather, not a scatter."""

    @staticmethod
    def forward(ctx, x, order, back_order):
        ctx.save_for_backward(back_order)
        return x.index_select(1, order)

    @staticmethod
    def backward(ctx, dout):
        return dout.index_select(1, ctx.saved_tensors[0]), None, None


class PatchMerging(nn.Module):
    """[B, N, C], window after window, to [B, N/4, 2C], in the order of the next stage's windows."""

    order: Tensor
    back_order: Tensor

    def __init__(self, dim: int, windows: Windows, following: Windows):
        super().__init__()
        self.reduction = Linear(4 * dim, 2 * dim, bias=False)
        self.norm = LayerNorm(2 * dim, eps=LAYER_NORM_EPS)
        order = inverse(windows.order())[squares(windows.side)[following.order()]].flatten()
        register_constants(self, order=order, back_order=inverse(order))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        x = _Reordered.apply(x, self.order, self.back_order).view(batch, tokens // 4, 4 * dim)
        return self.norm(self.reduction(x))


class RowMajor(nn.Module):
    """The last stage's tokens in the order that others know: [B, N, C], as it is where the stage is one
    window."""

    order: Tensor | None
    back_order: Tensor | None

    def __init__(self, windows: Windows, device: torch.device):
        super().__init__()
        order = None if windows.count == 1 else windows.order().to(device)
        self.register_buffer("order", None if order is None else inverse(order), persistent=False)
        self.register_buffer("back_order", order, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x if self.order is None else _Reordered.apply(x, self.order, self.back_order)
