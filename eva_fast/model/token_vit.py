"""BEiT v2's student: masked patches to the codes of a tokenizer, told twice (Peng et al. 2022, section
3.3, and its code, modeling_pretrain.py of microsoft/unilm's beit2; the facts, own code).

Beside the patches' own prediction, a few further blocks predict from the CLS token as it leaves the
last block and the patches as they leave an earlier one, through the same norm and head: so what the
patches lack must be in CLS. Without these blocks it is BEiT's student (Bao et al. 2022).
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.layers.recompute import spread
from eva_fast.layers.stream import as_stream
from eva_fast.model.beit import LAYER_SCALE, BeitViT
from eva_fast.model.sizes import ModelSizes
from eva_fast.model.student import drop_path_rates
from eva_fast.ops.linear_cross_entropy import linear_cross_entropy

LATE = 3
"""Main blocks behind those whose patches the branch reads: 3 of 12, 3 of 24."""


class CodeLosses(NamedTuple):
    """Of the masked patches: mean cross-entropy, and the share whose most likely code is right; float32
    scalars. Of the branch: None where there is none."""

    patches: Tensor
    branch: Tensor | None
    right: Tensor

    def total(self) -> Tensor:
        return self.patches if self.branch is None else self.patches + self.branch


class TokenViT(BeitViT):
    """A masked `BeitViT` with the branch of the CLS token.

    Args:
        sizes: shapes; `predict_dim` is the number of codes.
        branch_depth: blocks of the branch, `cls_pt_layers`; 0: there is none.
        early: main blocks before the patches that the branch reads; by default all but `LATE`.
        others: as for `BeitViT`.
    """

    def __init__(
        self,
        sizes: ModelSizes,
        drop_path: float = 0.0,
        layer_scale: float = LAYER_SCALE,
        branch_depth: int = 2,
        early: int | None = None,
        compute_dtype: torch.dtype = torch.float32,
        kernels: str = "auto",
    ):
        super().__init__(sizes, drop_path, layer_scale, True, compute_dtype, kernels)
        depth = sizes.depth
        self.early = max(1, depth - LATE) if early is None else early
        if branch_depth and not 0 < self.early < depth:
            raise ValueError(
                f"the branch reads patches after one of blocks 1 to {depth - 1} of {depth}, not after "
                f"{self.early}"
            )
        rates = drop_path_rates(drop_path, depth)
        dim, block = sizes.embed_dim, self.kit.Block
        self.cls_pt_layers = nn.ModuleList(
            block(dim, sizes.num_heads, sizes.mlp_hidden, rates[min(self.early + i, depth - 1)],
                  layer_scale=layer_scale)
            for i in range(branch_depth)
        )  # fmt: skip
        # PyTorch's own initial values, and the share in the stream that their place says
        with torch.no_grad():
            for i, layer in enumerate(self.cls_pt_layers, start=self.early + 1):
                layer.attn.proj.weight.div_(math.sqrt(2 * i))  # type: ignore[union-attr, operator]
                layer.mlp.fc2.weight.div_(math.sqrt(2 * i))  # type: ignore[union-attr, operator]

    def losses(self, images: Tensor, mask: Tensor, codes: Tensor) -> CodeLosses:
        """codes: int64 [M], of the masked patches, row-major over (image, patch)."""
        with self.precision.region(images.device.type):
            rows, branch = self._rows(images, mask)
            patches, right = self._cross_entropy(rows, codes)
            told_by_cls = None if branch is None else self._cross_entropy(branch, codes)[0]
        return CodeLosses(patches, told_by_cls, right)

    def logits(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """(logits [M,C] of the masked patches, those of the branch or None)."""
        with self.precision.region(images.device.type):
            rows, branch = self._rows(images, mask)
            return self.lm_head(rows), None if branch is None else self.lm_head(branch)

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        super().set_grad_checkpointing(enable, share)
        blocks = self.cls_pt_layers
        chosen = spread(len(blocks), share) if enable and len(blocks) else []
        for number, block in enumerate(blocks):
            block.recompute = number in chosen  # type: ignore[assignment]

    def _rows(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Normed rows [M,D] of the masked patches, and of the branch. The last main block computes CLS
        and the masked patches alone, that of the branch the masked patches."""
        masked, bias = self._masked(mask), self.rel_pos_bias()
        x = self.embed(images, masked)
        if not len(self.cls_pt_layers):
            last = self.run_blocks(x, self.blocks, bias, masked + 1)
            return self.norm(last).flatten(0, 1), None
        early = self.run_blocks(x, self.blocks[: self.early], bias)
        wanted = F.pad(masked + 1, (1, 0))
        last = self.run_blocks(early, self.blocks[self.early :], bias, wanted)
        cls, patches = as_stream(last).added()[:, :1], as_stream(early).added()[:, 1:]
        branch = torch.cat((cls, patches), 1)
        told = self.run_blocks(branch, self.cls_pt_layers, bias, masked + 1)
        return self.norm(last)[:, 1:].flatten(0, 1), self.norm(told).flatten(0, 1)

    def _cross_entropy(self, rows: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(mean cross-entropy of rows [M,D], share of rows whose most likely code is right)."""
        head: Any = self.lm_head
        if not self.fused:
            logits = head(rows)
            right = logits.argmax(1) == codes
            wide = logits if logits.dtype == torch.float64 else logits.float()
            return F.cross_entropy(wide, codes), right.float().mean()
        weight, copy = head.matrix(rows.dtype)
        loss, statistics = linear_cross_entropy(rows, weight, head.bias, codes, copy)
        return loss, (statistics[1] >= statistics[2]).float().mean()
