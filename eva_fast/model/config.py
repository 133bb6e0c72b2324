"""Options of the student."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from eva_fast.options import option, require, user_path


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Student."""

    model: str = "eva_ti_patch16_96"
    """Student by name: eva_SIZE_patchP_R with SIZE one of ti, s, b, l, h, g (or tiny ... giant);
    fd also beit_SIZE_patchP_R, and swinv2_SIZE_windowW_R with SIZE one of tiny, small, base, large.
    timm/NAME (eva: a ViT of timm; fd: any network) and torchvision/NAME (fd)."""
    img_size: int | None = None
    """Side of the square crop in pixels, if other than the name says."""
    patch_size: int | None = None
    """Side of a patch in pixels, if other than the name says."""
    embed_dim: int | None = None
    """Width, if other than the name says."""
    depth: int | None = None
    """Number of blocks, if other than the name says; of a Swin of all stages, of which the third has
    what the others' six leave."""
    num_heads: int | None = None
    """Attention heads, if other than the name says; of a Swin those of its first stage."""
    mlp_hidden: int | None = None
    """Width inside the MLP, if other than the name says."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0. mae and pixels have none, nor have some
    networks of other libraries."""
    normalize: Literal["clip", "imagenet"] | None = None
    """Whose mean and deviation the student's images of three channels are normalised with: clip or
    imagenet; by default clip (eva, mae, and eva_... under fd), which others do not choose. The teacher
    sees its own."""
    patch_embed_grad: float = 1.0
    """Share of the gradient that reaches the patch embedding, above 0: 0.1 is what the official code
    calls stop_grad_conv1."""
    layer_scale: float | None = None
    """Initial gamma of LayerScale, above 0: both branches of every block are multiplied by a vector that
    trains; by default there is none."""
    relative_bias: Literal["none", "shared", "decoupled"] = "none"
    """What attention's scores know of where two patches stand to each other, beside the positions: none,
    a table that all blocks share (BEiT's), or one of rows and one of columns (decoupled)."""
    init_from: Path | None = option(None, resume=True)
    """Start from these student weights instead of random ones: a file or folder of the official code,
    timm, transformers, open_clip or a run."""

    def __post_init__(self):
        object.__setattr__(self, "init_from", user_path(self.init_from))
        require(0 <= self.drop_path < 1, f"drop_path must be in [0, 1), got {self.drop_path}")
        share = self.patch_embed_grad
        gamma = self.layer_scale
        require(gamma is None or 0 < gamma < math.inf, f"layer_scale must be above 0, got {gamma}")
        require(0 < share <= 1, f"patch_embed_grad must be above 0 and at most 1, got {share}")
