"""One transformer block."""

import functools

import torch

from bench.harness import MODES, Case, differentiable
from bench.kit import Kit
from bench.shapes import Shape
from eva_fast.baselines.official import EPS, Block, CastLayerNorm, OfficialAttention
from eva_fast.baselines.tuned import TunedAttention
from eva_fast.layers import Block as StudentBlock

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
            ("compile", tuned),
            ("tuned", tuned),
            ("eva_fast", ours),
        )
    }
    kit.add("reference", official)
    kit.add("tuned", tuned_forward)
    kit.add("eva_fast", lambda x: ours(x).added())
    kit.add_compiled()
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
