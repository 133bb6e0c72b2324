"""Blocks that are built and named as those of EVA-01's modeling_finetune.py, in other words. What they
compute is checked against outputs of the official code in test_official.py.
"""

import torch
import torch.nn.functional as F
from torch import nn


class LayerNormWithForceFP32(nn.Module):
    def __init__(self, dim, eps=1e-6):
        super().__init__()
        self.normalized_shape, self.eps = (dim,), eps
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, x):
        weight, bias = self.weight.float(), self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).type_as(x)


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.training:
            return x
        keep = 1 - self.drop_prob
        return x * x.new_empty((len(x), *[1] * (x.dim() - 1))).bernoulli_(keep).div_(keep)


class RelativePositionBias(nn.Module):
    """[H, T, T], of all blocks or of one: what its table holds at an index is not what is tested."""

    def __init__(self, tokens, heads):
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.zeros(2 * tokens, heads))
        offsets = torch.arange(tokens)[:, None] - torch.arange(tokens) + tokens
        self.register_buffer("relative_position_index", offsets)

    def forward(self):
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)


class Attention(nn.Module):
    def __init__(self, dim, num_heads, qkv_bias=True, tokens=None, decoupled=False):
        super().__init__()
        self.num_heads, self.scale, self.qk_float = num_heads, (dim // num_heads) ** -0.5, True
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.rel_pos_bias = self.relative_position_bias_table = None
        if tokens is not None:
            bias = RelativePositionBias(tokens, num_heads)
            if decoupled:
                self.rel_pos_bias = bias
            else:
                self.relative_position_bias_table = bias.relative_position_bias_table
                self.register_buffer("relative_position_index", bias.relative_position_index)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x, rel_pos_bias=None, attn_mask=None):
        bias = None
        if self.q_bias is not None:
            bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
        qkv = F.linear(x, self.qkv.weight, bias)
        q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        scores = (self.scale * q).float() @ k.float().transpose(-2, -1)
        if self.relative_position_bias_table is not None:
            table = self.relative_position_bias_table[self.relative_position_index]
            scores = scores + table.permute(2, 0, 1).type_as(scores)
        if self.rel_pos_bias is not None:
            scores = scores + self.rel_pos_bias().type_as(scores)
        if rel_pos_bias is not None:
            scores = scores + rel_pos_bias.type_as(scores)
        if attn_mask is not None:
            scores = scores.masked_fill(~attn_mask.bool()[:, None, None, :], float("-inf"))
        weights = self.attn_drop(scores.softmax(-1).type_as(x))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).flatten(2)))


class Mlp(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.drop(self.fc2(self.act(self.fc1(x))))


class Block(nn.Module):
    def __init__(
        self, dim, num_heads, hidden, drop_path=0.0, init_values=None, postnorm=False, **attention
    ):
        super().__init__()
        self.norm1 = LayerNormWithForceFP32(dim)
        self.attn = Attention(dim, num_heads, **attention)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = LayerNormWithForceFP32(dim)
        self.mlp = Mlp(dim, hidden)
        self.gamma_1 = self.gamma_2 = None
        if init_values:
            self.gamma_1 = nn.Parameter(init_values * torch.ones(dim))
            self.gamma_2 = nn.Parameter(init_values * torch.ones(dim))
        self.postnorm = postnorm

    def forward(self, x, rel_pos_bias=None, attn_mask=None):
        gamma_1, gamma_2 = (1, 1) if self.gamma_1 is None else (self.gamma_1, self.gamma_2)
        given = {"rel_pos_bias": rel_pos_bias, "attn_mask": attn_mask}
        if self.postnorm:
            x = x + self.drop_path(gamma_1 * self.norm1(self.attn(x, **given)))
            return x + self.drop_path(gamma_2 * self.norm2(self.mlp(x)))
        x = x + self.drop_path(gamma_1 * self.attn(self.norm1(x), **given))
        return x + self.drop_path(gamma_2 * self.mlp(self.norm2(x)))
