"""One transformer block."""

import functools

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.model.branches import (
    AttentionWeights,
    Matrix,
    MlpWeights,
    Stream,
    attention_branch,
    mlp_branch,
)
from eva_fast.model.vit import Block as StudentBlock
from eva_fast.plan.reference import EPS, Block, CastLayerNorm, OfficialAttention, TunedAttention

__all__ = ["MODES", "subject"]


def _ordered(block: torch.nn.Module, state: dict) -> list[torch.Tensor]:
    """Parameters in the order of the official block's names."""
    named = dict(block.named_parameters())
    return [named[name] for name in state]


def _timm(shape: Shape, state: dict, parameters: dict[str, list[torch.Tensor]]):
    """timm's EVA block with the same weights; adds its parameters to `parameters`."""

    def make(module):
        sizes = shape.sizes
        block = module.EvaBlock(
            dim=sizes.embed_dim,
            num_heads=sizes.num_heads,
            qkv_fused=True,
            mlp_ratio=sizes.mlp_hidden / sizes.embed_dim,
            norm_layer=functools.partial(torch.nn.LayerNorm, eps=EPS),
            num_prefix_tokens=1,
        )
        block.load_state_dict(state, strict=False)
        block.to(shape.device, shape.dtype)
        parameters["timm"] = _ordered(block, state)
        return block

    return make


def _fused(block: StudentBlock):
    """The block as its two fused branches, the last residual addition done plainly."""
    attn, mlp = block.attn, block.mlp
    mlp_weights = MlpWeights(
        norm_weight=block.norm2.weight,
        norm_bias=block.norm2.bias,
        fc1=Matrix(mlp.fc1.weight),
        fc1_bias=mlp.fc1.bias,
        fc2=Matrix(mlp.fc2.weight),
        fc2_bias=mlp.fc2.bias,
        eps=block.norm2.eps,
    )
    zeros = torch.zeros_like(attn.q_bias)

    def run(x):
        with torch.no_grad():
            packed = torch.cat((attn.q_bias, zeros, attn.v_bias))
        weights = AttentionWeights(
            norm_weight=block.norm1.weight,
            norm_bias=block.norm1.bias,
            qkv=Matrix(attn.qkv.weight),
            q_bias=attn.q_bias,
            v_bias=attn.v_bias,
            packed_bias=packed,
            proj=Matrix(attn.proj.weight),
            proj_bias=attn.proj.bias,
            num_heads=attn.num_heads,
            eps=block.norm1.eps,
        )
        stream = mlp_branch(attention_branch(Stream(x), weights), mlp_weights)
        return stream.x + (stream.branch + stream.bias)

    return run


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    sizes = shape.sizes
    torch.manual_seed(0)
    official = Block(CastLayerNorm, OfficialAttention, sizes, 0.0)
    for p in official.parameters():
        torch.nn.init.normal_(p, std=0.05)
    state = official.state_dict()
    tuned = Block(torch.nn.LayerNorm, TunedAttention, sizes, 0.0)
    ours = StudentBlock(sizes.embed_dim, sizes.num_heads, sizes.mlp_hidden, 0.0)
    for block in (official, tuned, ours):
        block.load_state_dict(state)
        block.to(shape.device, shape.dtype)
    zeros = torch.zeros(sizes.embed_dim, device=shape.device, dtype=shape.dtype)

    def tuned_forward(x):
        attn = tuned.attn
        return tuned(x, torch.cat((attn.q_bias, zeros, attn.v_bias)))

    x = shape.randn(shape.batch, shape.tokens, sizes.embed_dim).requires_grad_()
    parameters = {
        name: _ordered(block, state)
        for name, block in (
            ("reference", official),
            ("compile", official),
            ("tuned", tuned),
            ("eva_fast", ours),
        )
    }
    kit.add("reference", official)
    kit.add("tuned", tuned_forward)
    kit.add("eva_fast", _fused(ours))
    kit.add_compiled(official)
    kit.add_library("timm", "timm.models.eva", _timm(shape, state, parameters), needs_gpu=False)
    return differentiable(
        "block",
        mode,
        shape.label,
        shape.device,
        kit.functions,
        [x],
        parameters=parameters,
        missing=kit.missing,
        batch=shape.batch,
        tolerance=1e-4 if shape.dtype == torch.float32 else 2e-2,
    )
