"""What a careful PyTorch user would write: native LayerNorm and GELU, flash attention through
`scaled_dot_product_attention`, index gather. The same numbers and parameter names as `OfficialViT`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.baselines.official import AttentionParameters, OfficialViT
from eva_fast.model.sizes import ModelSizes


class TunedAttention(AttentionParameters):
    """The same by PyTorch's flash attention; the packed bias [3D] comes from the model."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        qkv = F.linear(x, self.qkv.weight, bias).reshape(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class TunedViT(OfficialViT):
    """The same numbers from well-written PyTorch: what eager mode can give without own kernels.

    The q and v biases of all blocks are packed by one `cat`; masked tokens are gathered by rows
    that the loader computes, so nothing waits for the device."""

    norm_type = nn.LayerNorm
    attention_type = TunedAttention
    no_k_bias: Tensor

    def __init__(self, sizes: ModelSizes, drop_path: float = 0.0):
        super().__init__(sizes, drop_path)
        self.register_buffer("no_k_bias", torch.zeros(sizes.embed_dim), persistent=False)

    def inputs(self, mask: Tensor) -> tuple[Tensor, ...]:
        """(mask bool [B,N], rows int64 [M] of the masked tokens among the [B*T] tokens)."""
        image, patch = mask.nonzero(as_tuple=True)
        return mask, image * (self.sizes.num_patches + 1) + patch + 1

    def forward_features(self, images: Tensor, mask: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.where(mask.unsqueeze(-1), self.mask_token, x)
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1) + self.pos_embed
        parts: list[Tensor] = []
        for block in self.blocks:
            attn = block.get_submodule("attn")
            parts += [attn.get_parameter("q_bias"), self.no_k_bias, attn.get_parameter("v_bias")]
        biases = torch.cat(parts).view(len(self.blocks), -1).unbind(0)
        for block, bias in zip(self.blocks, biases, strict=True):
            x = block(x, bias)
        return self.norm(x)

    def forward(self, images: Tensor, *inputs: Tensor) -> Tensor:
        mask, rows = inputs
        features = self.forward_features(images, mask).flatten(0, 1)
        return self.lm_head(features.index_select(0, rows))

    def loss(self, target: Tensor, *inputs: Tensor) -> Tensor:
        prediction, target = self(*inputs).float(), target.float()
        unit = target / torch.linalg.vector_norm(target, dim=-1, keepdim=True)
        return -((prediction * unit).sum(-1) / torch.linalg.vector_norm(prediction, dim=-1)).mean()
