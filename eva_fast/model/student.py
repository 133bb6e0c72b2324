"""What students that are plain vision transformers share: arguments, masks, drop-path, checkpointing.

The networks are built of the fused layers (`eva_fast.layers`) or, as their reference, of the plain
ones (`eva_fast.layers.plain`), which compute the same from the same parameters.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from eva_fast import layers
from eva_fast.layers import plain
from eva_fast.layers.inputs import mask_indices
from eva_fast.layers.recompute import spread
from eva_fast.layers.stream import Scales, drop_path_scales
from eva_fast.model.official import Official
from eva_fast.model.sizes import ModelSizes

KERNELS = ("auto", "torch", "native", "triton")


class VitStudent(Official):
    """The base of a student: `sizes`, `precision`, and `blocks` that a subclass makes.

    Args:
        sizes: shapes of the model.
        compute_dtype: dtype of the blocks' arithmetic; parameters stay float32. Norm statistics,
            softmax and loss are float32 whatever it is.
        kernels: "torch" builds it of the plain layers; anything else of the fused ones, whose ops
            `eva_fast.ops.set_kernels` chooses for the process.
    """

    blocks: nn.ModuleList

    def __init__(self, sizes: ModelSizes, compute_dtype: torch.dtype, kernels: str):
        super().__init__()
        if kernels not in KERNELS:
            raise ValueError(f"kernels must be auto, torch, native or triton, got {kernels!r}")
        self.sizes = sizes
        self.grid = sizes.grid
        self.fused = kernels != "torch"
        self.precision = self.kit.Precision(compute_dtype)

    @property
    def kit(self) -> Any:
        """The layers it is built of: one set of classes or the other, with the same arguments."""
        return layers if self.fused else plain

    prefix_tokens = 1
    """Tokens in front of those of the patches: CLS."""

    @property
    def width(self) -> int:
        """Of the residual stream."""
        return self.sizes.embed_dim

    @property
    def compute_dtype(self) -> torch.dtype:
        """What the products run in while autocast is off."""
        return self.precision.chosen

    def set_grad_checkpointing(self, enable: bool = True, share: float = 1.0) -> None:
        """Has blocks keep their inputs alone for the backward pass and compute the rest again there:
        less memory for about a third more arithmetic, and the same numbers. share: of the blocks, in
        (0, 1], evenly spread. The name is timm's."""
        if not 0 < share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {share}")
        chosen = spread(len(self.blocks), share) if enable else []
        for number, block in enumerate(self.blocks):
            block.recompute = number in chosen  # type: ignore[assignment]

    def _dtype(self, parameter: Tensor, images: Tensor) -> torch.dtype:
        return self.precision.dtype(parameter.dtype, images.device.type)

    def _masked(self, mask: Tensor) -> Tensor:
        """The mask as int32 [B,K] patch indices."""
        return mask_indices(mask, self.sizes.num_patches).to(torch.int32)

    def _drop_path_scales(self, x: Tensor, blocks: Iterable[nn.Module]) -> list[Scales] | None:
        """Of all `blocks` where one draw is worth it; None where each draws for itself."""
        if not (self.training and self.fused and x.is_cuda) or torch.compiler.is_compiling():
            return None
        rates = [float(block.drop_path) for block in blocks]  # type: ignore[arg-type]
        return drop_path_scales(rates, x) if any(rates) else None

    def _check_images(self, images: Tensor) -> None:
        side, channels = self.sizes.img_size, self.sizes.channels
        if images.ndim != 4 or images.shape[1:] != (channels, side, side):
            raise ValueError(
                f"images must be [B,{channels},{side},{side}] for this model, got {tuple(images.shape)}"
            )


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Drop-path's rate of each block, from 0 in the first to `last` in the last."""
    if not 0.0 <= last < 1.0:
        raise ValueError(f"drop_path must be at least 0 and below 1, got {last}")
    return [last * i / max(depth - 1, 1) for i in range(depth)]
