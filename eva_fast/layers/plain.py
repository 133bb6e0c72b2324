"""The same layers in plain PyTorch: the reference for the fused ones, and what kernels="torch" runs.

Parameter names are the fused layers', and so are the arguments, so that a network is built of the
one or the other. Blocks hand on tokens [B, T, D] with nothing pending.
"""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.layers import rel_pos
from eva_fast.layers.attention import QkvBias
from eva_fast.layers.block import LAYER_NORM_EPS
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, Channels, normalise, take_rows
from eva_fast.layers.patch_embed import share_of_gradient
from eva_fast.layers.recompute import run_branches
from eva_fast.layers.stream import drop_path_scale


class Precision:
    """16-bit arithmetic by autocast."""

    def __init__(self, chosen: torch.dtype):
        self.chosen = chosen

    def dtype(self, parameters: torch.dtype, device_type: str) -> torch.dtype:
        """What the images are brought to: the parameters' dtype, from which autocast casts."""
        return parameters

    def region(self, device_type: str) -> contextlib.AbstractContextManager[Any]:
        if device_type == "meta":  # it has no autocast: what is counted there is in one dtype
            return contextlib.nullcontext()
        enabled = self.chosen in (torch.bfloat16, torch.float16)
        # Within a longer region the cache would outlive the optimiser's step.
        return torch.autocast(
            device_type,
            dtype=self.chosen if enabled else None,
            enabled=enabled,
            cache_enabled=False,
        )


class LayerNorm(nn.LayerNorm):
    """LayerNorm with float32 statistics and parameters (EVA-01), result in x's dtype."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype:
            return super().forward(x)
        y = F.layer_norm(x.float(), self.normalized_shape, self.weight, self.bias, self.eps)
        return y.to(x.dtype)


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None) -> Tensor:
    """x + scale * branch, the residual connection."""
    return x + (branch if scale is None else branch * scale.view(-1, 1, 1).to(branch.dtype))


def scaled(branch: Tensor, gamma: Tensor | None) -> Tensor:
    """gamma * branch, LayerScale; gamma [D], None: 1."""
    return branch if gamma is None else branch * gamma.to(branch.dtype)


class PatchEmbed(nn.Module):
    """Patch convolution, mask token, CLS and positions: [B, C, H, W] -> [B, N + 1, D]."""

    def __init__(
        self,
        patch_size: int,
        embed_dim: int,
        mean: Channels = CLIP_MEAN,
        std: Channels = CLIP_STD,
        channels: int = 3,
        grad_share: float = 1.0,
    ):
        super().__init__()
        self.proj = nn.Conv2d(channels, embed_dim, patch_size, patch_size)
        self.mean, self.std = mean, std
        self.grad_share = grad_share

    def forward(
        self,
        images: Tensor,
        masked: Tensor | None,
        mask_token: Tensor,
        cls_token: Tensor,
        pos_embed: Tensor | None,
        dtype: torch.dtype,
    ) -> Tensor:
        x = self.proj(normalise(images, dtype, self.mean, self.std)).flatten(2).transpose(1, 2)
        x = share_of_gradient(x, self.grad_share)
        if masked is not None:
            rows = masked.long().unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x = x.scatter(1, rows, mask_token.to(x.dtype).expand_as(rows))
        x = torch.cat([cls_token.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return x if pos_embed is None else x + pos_embed.to(x.dtype)


class KeptPatchEmbed(nn.Module):
    """Patch convolution, CLS and fixed positions, then the patches that are kept: [B, C, H, W] ->
    [B, K + 1, D]."""

    def __init__(
        self, patch_size: int, embed_dim: int, mean: Channels, std: Channels, channels: int = 3
    ):
        super().__init__()
        self.proj = nn.Conv2d(channels, embed_dim, patch_size, patch_size)
        self.mean, self.std = mean, std

    def forward(
        self,
        images: Tensor,
        kept: Tensor | None,
        cls_token: Tensor,
        pos_embed: Tensor,
        dtype: torch.dtype,
    ) -> Tensor:
        x = self.proj(normalise(images, dtype, self.mean, self.std)).flatten(2).transpose(1, 2)
        x = x + pos_embed[:, 1:].to(x.dtype)
        if kept is not None:
            x = take_rows(x, kept)
        cls_row = (cls_token + pos_embed[:, :1]).to(x.dtype)
        return torch.cat([cls_row.expand(len(x), -1, -1), x], dim=1)


class Attention(nn.Module):
    """Multi-head attention with q and v biases and none for k as in BEiT and EVA, or with a full
    `qkv.bias`."""

    def __init__(self, dim: int, num_heads: int, qkv_bias: QkvBias = "qv"):
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias == "full")
        if qkv_bias == "qv":
            self.q_bias = nn.Parameter(torch.zeros(dim))
            self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """x [B,T,D] -> [B,T,D]; with `tokens` int [B,K] only those rows ask: [B,K,D]. bias [H,T,T] is
        added to the scaled scores."""
        batch, _, dim = x.shape
        if tokens is None:
            q, k, v = F.linear(x, self.qkv.weight, self._packed_bias()).chunk(3, dim=-1)
        else:
            q_weight, k_weight, v_weight = self.qkv.weight.chunk(3)
            q_bias, k_bias, v_bias = self._biases()
            q = F.linear(take_rows(x, tokens), q_weight, q_bias)
            k, v = F.linear(x, k_weight, k_bias), F.linear(x, v_weight, v_bias)
            bias = None if bias is None else bias[:, tokens.long()].transpose(0, 1)
        q, k, v = (
            t.view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v)
        )
        bias = None if bias is None else bias.to(q.dtype)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, -1, dim))

    def _packed_bias(self) -> Tensor:
        if self.qkv.bias is not None:
            return self.qkv.bias
        return torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])

    def _biases(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Of q, k and v."""
        if self.qkv.bias is not None:
            q_bias, k_bias, v_bias = self.qkv.bias.chunk(3)
            return q_bias, k_bias, v_bias
        return self.q_bias, None, self.v_bias


class RelativePositionBias(rel_pos.RelativePositionBias):
    """The bias of all heads, [H,T,T], by indexing."""

    def forward(self) -> Tensor:
        return self.relative_position_bias_table[self.get_buffer("index")].permute(2, 0, 1)


class DecoupledRelativePositionBias(rel_pos.DecoupledRelativePositionBias):
    """The bias of all heads, [H,T,T], by indexing."""

    def forward(self) -> Tensor:
        down, across = (self.table(name)[self.get_buffer(f"{name}_index")] for name in rel_pos.AXES)
        return (down + across).permute(2, 0, 1)


class Mlp(nn.Module):
    """Linear, exact (erf) GELU, Linear."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + drop_path(gamma_1 attn(norm1(x))), then x + drop_path(gamma_2 mlp(norm2(x)))."""

    gamma_1: nn.Parameter | None
    gamma_2: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        drop_path: float,
        *,
        qkv_bias: QkvBias = "qv",
        layer_scale: float | None = None,
    ):
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, hidden)
        self.gamma_1 = self.gamma_2 = None
        if layer_scale is not None:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))
        self.drop_path = drop_path
        self.recompute = False

    def forward(
        self, x: Tensor, tokens: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """[B,T,D] -> [B,T,D]; with `tokens`, int [B,K] rows of x (CLS is row 0), only those come
        out, the same values as the full block gives them: all of the keys and values, nothing else
        of the other tokens. bias: [H,T,T], added to attention's scaled scores."""
        scales = [drop_path_scale(self.drop_path, self.training, x) for _ in range(2)]
        return run_branches(self, self._branches, tokens, *scales, bias, x)

    def _branches(
        self,
        tokens: Tensor | None,
        attn_scale: Tensor | None,
        mlp_scale: Tensor | None,
        bias: Tensor | None,
        x: Tensor,
    ) -> Tensor:
        y = scaled(self.attn(self.norm1(x), tokens, bias), self.gamma_1)
        if tokens is not None:
            x = take_rows(x, tokens)
        x = add_branch(x, y, attn_scale)
        return add_branch(x, scaled(self.mlp(self.norm2(x)), self.gamma_2), mlp_scale)


class Head(nn.Linear):
    """The Linear after the final norm, and EVA's loss."""

    def project(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """This Linear of `norm(x)`: [rows, C] of x [B, K, D]."""
        return self(norm(x)).flatten(0, -2)

    def loss(self, x: Tensor, norm: nn.LayerNorm, target: Tensor) -> Tensor:
        """-mean cos(prediction, target), float32 (float64 for a float64 network)."""
        prediction = self.project(x, norm)
        dtype = torch.float64 if prediction.dtype == torch.float64 else torch.float32
        return -F.cosine_similarity(prediction.to(dtype), target.to(dtype), dim=-1).mean()


class PointwiseProjection(nn.Conv1d):
    """A convolution of one token after the final norm."""

    def project(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """[rows, C] of x [B, T, D]."""
        return self(norm(x).mT).mT.flatten(0, -2)
