"""A pre-norm transformer block whose forward is the fused path."""

import torch
from torch import Tensor, nn

from eva_fast.layers.add_norm import LayerNorm
from eva_fast.layers.attention import Attention, QkvBias
from eva_fast.layers.block_branch import block_branch
from eva_fast.layers.members import calls_only, child
from eva_fast.layers.mlp import Mlp
from eva_fast.layers.recompute import run_branches
from eva_fast.layers.stream import Scales, Stream, as_stream, drop_path_scale, leaving

LAYER_NORM_EPS = 1e-6
_ATTENTION, _MLP = Attention.forward, Mlp.forward


class Block(nn.Module):
    """x + drop_path(gamma_1 attn(norm1(x))), then x + drop_path(gamma_2 mlp(norm2(x))), on streams.

    The second addition stays pending in the stream that comes out, for the next block's norm;
    `block(x).added()` is the whole block. It reads its own parameters alone, so that it can be
    sharded and compiled by itself, and checkpointed where `recompute` is set (`layers/recompute.py`).
    The norms are not called, their parameters go to the branches; nor are `attn` and `mlp` where all
    that their call would do is run their branch (`layers/block_branch.py`). FSDP2's mixed precision
    wants `cast_forward_inputs=False`, for drop-path's factors come in as float32.

    qkv_bias: "qv" (BEiT, EVA) or "full" (timm's ViT, MAE). layer_scale: the initial gamma_1 and gamma_2
    (LayerScale); None: there is none.
    """

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
        if layer_scale is None:
            self.gamma_1 = self.gamma_2 = None
        else:
            self.gamma_1 = nn.Parameter(torch.full((dim,), layer_scale))
            self.gamma_2 = nn.Parameter(torch.full((dim,), layer_scale))
            self.attn.proj.scaled = self.mlp.fc2.scaled = True
        self.drop_path = drop_path
        self.recompute = False

    def forward(
        self,
        stream: Stream | Tensor,
        tokens: Tensor | None = None,
        scales: Scales | None = None,
        bias: Tensor | None = None,
    ) -> Stream:
        """[B, T, D], or a stream of it, to a stream of [B, T, D]. With `tokens`, int32 [B, K] rows
        of x (CLS is row 0), only those come out, [B, K, D], with the values of the full block.
        scales: drop-path's factors, where they were drawn for all blocks; else they are drawn here.
        bias: [H, T, T], added to attention's scaled scores, the same for all images."""
        stream = as_stream(stream)
        if scales is None:
            rate, training = self.drop_path, self.training
            scales = (
                drop_path_scale(rate, training, stream.x),
                drop_path_scale(rate, training, stream.x),
            )
        return leaving(self, run_branches(self, self._branches, tokens, *scales, bias, *stream))

    def _branches(
        self,
        tokens: Tensor | None,
        attn_scale: Tensor | None,
        mlp_scale: Tensor | None,
        bias: Tensor | None,
        *stream: Tensor | None,
    ) -> Stream:
        """Attention and MLP; the scales are drop-path's factors of their results."""
        attn, norm1, mlp, norm2 = (child(self, name) for name in ("attn", "norm1", "mlp", "norm2"))
        if (
            tokens is None
            and bias is None
            and not torch.compiler.is_compiling()
            and calls_only(attn, Attention, _ATTENTION)
            and calls_only(mlp, Mlp, _MLP)
        ):
            dtype = stream[0].dtype  # type: ignore[union-attr]
            x = block_branch(
                Stream(*stream),  # type: ignore[arg-type]
                attn.weights(norm1, self.gamma_1, dtype),
                attn_scale,
                mlp.weights(norm2, self.gamma_2, dtype),
            )
            return Stream(x.x, x.branch, x.bias, mlp_scale)
        x = attn(Stream(*stream), norm1, tokens, bias, self.gamma_1)  # type: ignore[arg-type]
        x = Stream(x.x, x.branch, x.bias, attn_scale)
        x = mlp(x, norm2, self.gamma_2)
        return Stream(x.x, x.branch, x.bias, mlp_scale)
