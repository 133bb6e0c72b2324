"""BEiT v2's student on timm's `Beit`: mask tokens, the branch of CLS, two cross-entropies over codes.

`TimmTokens` is also an independent reference for tests.
"""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.objectives.fd import imagenet, timm_beit
from bench.objectives.pair import Pair, images_batch
from eva_fast.data import BlockMaskField
from eva_fast.model import ModelSizes, sizes_of
from eva_fast.model.token_vit import TokenViT
from eva_fast.objectives.tokens import BLOCK_SHARE, MASKED_SHARE, Tokens

MODEL = "beit_base_patch16_224"
CODES = 8192
COMPARED = (
    "patch_embed.proj.weight", "rel_pos_bias.relative_position_bias_table", "mask_token",
    "blocks.0.attn.q_bias", "cls_pt_layers.0.gamma_2", "lm_head.weight",
)  # fmt: skip


class TimmTokens(nn.Module):
    """The network as published (microsoft/unilm, beit2): every token goes through every block, rows of
    masked patches are taken before the head.

    early: main blocks before the patches that the branch reads."""

    def __init__(self, sizes: ModelSizes, early: int, branch_depth: int = 2):
        from timm.models.beit import Block

        super().__init__()
        beit, dim = timm_beit(sizes), sizes.embed_dim
        self.patch_embed, self.cls_token = beit.patch_embed, beit.cls_token
        self.rel_pos_bias, self.blocks, self.norm = beit.rel_pos_bias, beit.blocks, beit.norm
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        norm = partial(nn.LayerNorm, eps=beit.norm.eps)
        self.cls_pt_layers = nn.ModuleList(
            Block(
                dim, sizes.num_heads, qkv_bias=True, mlp_ratio=sizes.mlp_hidden / dim,
                init_values=0.1, norm_layer=norm,
            )
            for _ in range(branch_depth)
        )  # fmt: skip
        self.lm_head = nn.Linear(dim, sizes.predict_dim)
        self.early = early

    def forward(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """(logits of the masked patches, those of the branch); mask: bool [B,N]."""
        x = self.patch_embed(images)
        hidden = mask.unsqueeze(-1).type_as(x)
        x = x * (1 - hidden) + self.mask_token * hidden
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x), dim=1)
        bias = self.rel_pos_bias()
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, shared_rel_pos_bias=bias)
            if number == self.early:
                early = x[:, 1:]
        branch = torch.cat((x[:, :1], early), dim=1)
        for block in self.cls_pt_layers:
            branch = block(branch, shared_rel_pos_bias=bias)
        rows = [self.norm(t)[:, 1:][mask] for t in (x, branch)]
        return self.lm_head(rows[0]), self.lm_head(rows[1])

    def loss(self, images: Tensor, mask: Tensor, codes: Tensor) -> Tensor:
        return sum(F.cross_entropy(logits, codes) for logits in self(images, mask))


def pair(model: str, depth: int | None, size: int) -> Pair:
    torch.manual_seed(0)
    sizes = replace(sizes_of(model, depth=depth), predict_dim=CODES)
    patches = sizes.num_patches
    masked, block = (round(share * patches) for share in (MASKED_SHARE, BLOCK_SHARE))
    batch = images_batch(size, sizes.img_size, [BlockMaskField(sizes.grid, masked, block)])
    ours = TokenViT(sizes)
    theirs = TimmTokens(sizes, ours.early)
    theirs.load_state_dict(ours.state_dict())
    mask = torch.zeros(size, patches, dtype=torch.bool).scatter_(1, batch.mask.long(), True)
    codes = torch.randint(CODES, (batch.mask.numel(),))
    objective = Tokens()
    objective.codes, objective.terms = CODES, 2
    return Pair(
        name="tokens", shape=f"{model} depth {sizes.depth} b{size}", objective=objective,
        ours=ours, theirs=theirs, batch=batch, target=codes,
        their_loss=lambda: theirs.loss(imagenet(batch.images), mask, codes), compared=COMPARED,
    )  # fmt: skip
