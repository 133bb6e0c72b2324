"""EVA-01's initial values (baaivision/EVA, EVA-01/eva/modeling_pretrain.py; the facts, own code)."""

import math
from typing import Any

import torch
from torch import nn

STD = 0.015
KEPT = ("gamma_1", "gamma_2", "bias_table", "bias_for_high", "bias_for_width")


@torch.no_grad()
def init_weights(model: nn.Module, std: float = STD) -> None:
    """Fills `model` as EVA-01 does, from torch's global random state.

    Matrices, the patch convolution, `pos_embed`, `cls_token` and `mask_token`: normal with std
    0.015 truncated at one (not two) standard deviations; BEiT's code has `std` 0.02. Biases 0,
    LayerNorm 1 and 0. Then the two matrices that write to the residual stream in block i (counted from
    1) are divided by sqrt(2 i). LayerScale and tables of relative positions keep what they have.
    """
    for name, parameter in model.named_parameters():
        if name.endswith(KEPT):
            continue
        if parameter.ndim > 1:
            nn.init.trunc_normal_(parameter, std=std, a=-std, b=std)
        else:
            is_norm_weight = "norm" in name and name.endswith("weight")
            nn.init.constant_(parameter, 1.0 if is_norm_weight else 0.0)
    blocks: Any = model.blocks
    for i, block in enumerate(blocks, start=1):
        block.attn.proj.weight.div_(math.sqrt(2 * i))
        block.mlp.fc2.weight.div_(math.sqrt(2 * i))
