"""Both branches of a block as one function with one backward.

The numbers are those of `attention_branch` and `mlp_branch` one after the other, by the same code; of
two functions each would have autograd take apart and put together what goes between them, which costs
the host more than some of the kernels do.
"""

from typing import Any

import torch
from torch import Tensor

from eva_fast.layers.attention import AttentionWeights, attention_backward, attention_forward
from eva_fast.layers.mlp import MlpWeights, mlp_backward, mlp_forward
from eva_fast.layers.stream import Stream


class _Record:
    """What a branch notes for its backward beside tensors."""

    weight_dtypes: tuple[torch.dtype, torch.dtype]
    bias_dtype: torch.dtype | None
    pending_bias_dtype: torch.dtype | None
    has_branch: bool
    in_eight: bool
    angles: None
    kind: str
    quantised: tuple[Any, ...]


class _BlockBranch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, x, branch, branch_bias, scale, norm1_weight, norm1_bias, qkv_weight, q_bias, v_bias,
        proj_weight, proj_bias, attn_scale, norm2_weight, norm2_bias, fc1_weight, fc1_bias,
        fc2_weight, attn_settings, mlp_settings,
    ):  # fmt: skip
        attn, mlp = ctx.records = _Record(), _Record()
        x, branch, attn_saved = attention_forward(
            attn, x, branch, branch_bias, scale, norm1_weight, norm1_bias, qkv_weight, q_bias,
            v_bias, proj_weight, *attn_settings,
        )  # fmt: skip
        x, branch, mlp_saved = mlp_forward(
            mlp, x, branch, proj_bias, attn_scale, norm2_weight, norm2_bias, fc1_weight, fc1_bias,
            fc2_weight, *mlp_settings,
        )  # fmt: skip
        ctx.attn_count = len(attn_saved)
        ctx.save_for_backward(*attn_saved, *mlp_saved)
        return x, branch

    @staticmethod
    def backward(ctx, dtotal, dresult):
        attn, mlp = ctx.records
        saved, wants = ctx.saved_tensors, ctx.needs_input_grad
        dtotal, dresult, dproj_bias, _, *of_mlp = mlp_backward(
            mlp, saved[ctx.attn_count :], wants[14:17], dtotal, dresult
        )
        of_attn, _ = attention_backward(attn, saved[: ctx.attn_count], wants[6:10], dtotal, dresult)
        return *of_attn, dproj_bias, None, *of_mlp, None, None


def block_branch(
    stream: Stream, attn: AttentionWeights, attn_scale: Tensor | None, mlp: MlpWeights
) -> Stream:
    """`mlp_branch` of what `attention_branch` gives of `stream`, all tokens, without a bias of the
    scores. attn_scale: drop-path's factors of attention, float32 [B]; the caller sets those of the
    MLP."""
    x, branch = _BlockBranch.apply(
        *stream, attn.norm_weight, attn.norm_bias, attn.qkv.weight, attn.q_bias, attn.v_bias,
        attn.proj.weight, attn.proj_bias, attn_scale, mlp.norm_weight, mlp.norm_bias,
        mlp.fc1.weight, mlp.fc1_bias, mlp.fc2.weight,
        (attn.qkv.copy, attn.packed_bias, attn.proj.copy, attn.num_heads, attn.eps),
        (mlp.fc1.copy, mlp.fc2.copy, mlp.eps, mlp.kind),
    )  # fmt: skip
    return Stream(x, branch, mlp.fc2_bias)
