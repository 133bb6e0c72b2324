"""What every teacher shares: normalisation, input size, masked rows, whitening, frozen weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eva_fast.errors import UsageError
from eva_fast.layers.inputs import CLIP_MEAN, CLIP_STD, mask_indices, take_rows

_WHITENING = ("feature_mean", "feature_std", "is_whitened")


class Teacher(nn.Module):
    """A frozen network (or formula) that gives one feature vector for every patch.

    A subclass computes `patch_features`; everything else is here. The weights never train and are
    never saved: `state_dict()` holds only the whitening (`feature_mean`, `feature_std`,
    `is_whitened`), because the rest comes back from the teacher's own file.

    Args:
        name: what the teacher was loaded as.
        dim: width C of a feature vector.
        grid: (rows, columns) of the patches the features are for.
        input_size: (height, width) in pixels that the network gets; None takes images as they are.
        mean, std: the network's own normalisation of RGB in 0..1.
        whiten: give features with mean 0 and deviation 1 a channel; needs `calibrate` first.
    """

    capturable = False
    """Whether `image_features` can be captured as a CUDA graph: it asks the host for nothing."""
    points: tuple[str, ...] = ("proj", "norm")
    """Where its features may be said to be from: "proj", as the network gives them to others, or "norm",
    after its own last norm. Only a projection behind that norm tells the two apart."""
    cls = False
    """Whether the features of all patches have the CLS token's in front."""
    feature_mean: Tensor
    feature_std: Tensor
    is_whitened: Tensor

    def __init__(
        self,
        name: str,
        dim: int,
        grid: tuple[int, int],
        input_size: tuple[int, int] | None,
        mean: Iterable[float] = CLIP_MEAN,
        std: Iterable[float] = CLIP_STD,
        whiten: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.dim, self.grid, self.input_size = name, dim, grid, input_size
        self.whiten = whiten
        self.whitened = False
        self.compute_dtype = torch.float32
        own_mean, own_std = torch.tensor(tuple(mean)), torch.tensor(tuple(std))
        clip_mean, clip_std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
        # Both kinds of image reach the own normalisation by one multiply-add a channel.
        for kind, scale, shift in (
            ("byte", 1 / (255 * own_std), -own_mean / own_std),
            ("float", clip_std / own_std, (clip_mean - own_mean) / own_std),
        ):
            self.register_buffer(f"{kind}_scale", scale.view(3, 1, 1), persistent=False)
            self.register_buffer(f"{kind}_shift", shift.view(3, 1, 1), persistent=False)
        self.register_buffer("feature_mean", torch.zeros(dim))
        self.register_buffer("feature_std", torch.ones(dim))
        self.register_buffer("is_whitened", torch.tensor(False))
        self.register_state_dict_post_hook(_keep_whitening_only)
        self.register_load_state_dict_post_hook(_after_load)

    def see(self, channels: Sequence[int], mean: Sequence[float], std: Sequence[float]) -> None:
        """From now on images are float [B,C,H,W], less `mean` and over `std` of each of any number of
        channels: it sees three of them, counted from 0, as red, green and blue."""
        where = self.feature_mean.device
        place = torch.tensor(list(channels), device=where)
        own_mean, own_std = (torch.tensor(tuple(v), device=where)[place] for v in (mean, std))
        clip_mean, clip_std = (torch.tensor(v, device=where) for v in (CLIP_MEAN, CLIP_STD))
        self.register_buffer("seen", place, persistent=False)
        scale, shift = own_std / clip_std, (own_mean - clip_mean) / clip_std
        self.register_buffer("seen_scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("seen_shift", shift.view(3, 1, 1), persistent=False)

    def _as_colours(self, images: Tensor) -> Tensor:
        """Images as `see` describes them, as the teacher takes them: normalised as for CLIP."""
        if not hasattr(self, "seen"):
            return images
        chosen = images.index_select(1, self.seen)  # type: ignore[arg-type]
        return torch.addcmul(self.seen_shift, chosen, self.seen_scale)  # type: ignore[arg-type]

    def patch_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        """Features of normalised images [B,3,h,w]: [B,N,C] ([B,1+N,C] with `cls`), or [B,K,C] of the
        patches index[B,K]."""
        raise TypeError(f"{type(self).__name__} does not say how it computes features")

    @torch.no_grad()
    def forward(self, images: Tensor, mask: Tensor | None = None) -> Tensor:
        """Features of all patches, or of the masked ones.

        Args:
            images: uint8 [B,3,H,W], or float [B,3,H,W] normalised as for CLIP.
            mask: bool [B,N] or [B,rows,columns] with as many patches in every image, or integer
                [B,K] patch indices in ascending order. Integers need no host synchronisation.

        Returns:
            float32 (float64 for a float64 teacher): [B,N,C] without a mask, [B,1+N,C] with the CLS
            token's row where `cls`; else [B*K,C], row by row over (image, patch).
        """
        if self.whiten and not self.whitened:
            raise ValueError(
                f"teacher {self.name!r} is to whiten its features but knows no mean and deviation: "
                "call teacher.calibrate(batches) or load a saved state first"
            )
        features, index = self._compute(images, mask)
        if self.whitened:
            features = (features - self.feature_mean) / self.feature_std
        return features if index is None else features.flatten(0, 1)

    def _compute(self, images: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if images.ndim == 4:
            images = self._as_colours(images)
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be [B,3,H,W], not {list(images.shape)}")
        index = patch_index(mask, images.shape[0], self.grid)
        if index is not None:
            index = index.to(images.device, non_blocking=True)
        features = self.image_features(images, index)
        wide = torch.float64 if self.compute_dtype == torch.float64 else torch.float32
        return features.to(wide), index

    def image_features(self, images: Tensor, index: Tensor | None) -> Tensor:
        """`patch_features` of images as `forward` takes them."""
        return self.patch_features(self.prepare(images), index)

    def prepare(self, images: Tensor) -> Tensor:
        """The network's input: own normalisation, own size (antialiased bicubic), own dtype."""
        wide = torch.float64 if self.compute_dtype == torch.float64 else torch.float32
        kind = "byte" if images.dtype == torch.uint8 else "float"
        scale, shift = getattr(self, f"{kind}_scale"), getattr(self, f"{kind}_shift")
        images = torch.addcmul(shift.to(wide), images.to(wide), scale.to(wide))
        if self.input_size is not None and tuple(images.shape[-2:]) != self.input_size:
            images = F.interpolate(
                images, self.input_size, mode="bicubic", align_corners=False, antialias=True
            )
        return images.to(self.compute_dtype)

    @torch.no_grad()
    def calibrate(self, batches: Iterable[Any], max_batches: int | None = None) -> Teacher:
        """Measure mean and deviation of each channel over batches of images and whiten from now on.

        `batches` yields images as `forward` takes them, or objects with such `.images`; endless
        iterators need `max_batches`. Statistics are merged in float64 (Chan et al. 1983), so the
        order and size of the batches do not matter. A channel that never changes is only centred.
        """
        count = 0
        mean = square = torch.zeros(self.dim, dtype=torch.float64)
        for batch in islice(batches, max_batches):
            images = getattr(batch, "images", batch).to(self.feature_mean.device)
            rows = self._compute(images, None)[0].flatten(0, 1).double().cpu()
            delta = rows.mean(0) - mean
            total = count + len(rows)
            square = square + (rows - rows.mean(0)).square().sum(0)
            square = square + delta.square() * (count * len(rows) / total)
            mean = mean + delta * (len(rows) / total)
            count = total
        if count == 0:
            raise ValueError("calibration got no images")
        std = (square / count).sqrt()
        if not (torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise UsageError(f"teacher {self.name!r} gives features that are not finite")
        # A constant channel has a deviation of rounding errors; dividing by it would show noise.
        std[std <= 1e-6 * std.max()] = 1.0
        self.feature_mean.copy_(mean)
        self.feature_std.copy_(std)
        self.is_whitened.fill_(True)
        self.whitened = True
        return self

    def freeze(self, device: str | torch.device, dtype: torch.dtype | None) -> Teacher:
        """Move to `device` and compute in `dtype` (None: bfloat16 on a GPU, else float32)."""
        device = torch.device(device)
        if dtype is None:
            dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        if not dtype.is_floating_point:
            raise ValueError(f"a teacher computes in a floating-point dtype, not {dtype}")
        self.compute_dtype = dtype
        for child in self.children():
            child.to(dtype)
        if dtype == torch.float64:
            self.feature_mean = self.feature_mean.double()
            self.feature_std = self.feature_std.double()
        return self.to(device).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        """A teacher always stays in evaluation mode."""
        return super().train(False)

    def extra_repr(self) -> str:
        size = "as given" if self.input_size is None else "x".join(map(str, self.input_size))
        return f"{self.name!r}, dim={self.dim}, grid={self.grid}, input={size}"


def patch_index(mask: Tensor | None, batch: int, grid: tuple[int, int]) -> Tensor | None:
    """int64 [B,K] patch indices of a bool [B,N], bool [B,rows,columns] or integer [B,K] mask."""
    patches = grid[0] * grid[1]
    if mask is None:
        return None
    shapes = ((batch, patches), (batch, *grid)) if mask.dtype == torch.bool else (mask.shape,)
    if mask.shape[:1] != (batch,) or mask.shape not in shapes:
        raise ValueError(
            f"a mask for {batch} images on a {grid[0]}x{grid[1]} grid is bool [{batch},{patches}] "
            f"or int32 [{batch},K], not {mask.dtype} {list(mask.shape)}"
        )
    index = mask_indices(mask, patches).long()
    # Reading values of a tensor on a GPU would stall the step, so only the CPU is checked.
    if mask.device.type == "cpu" and not 0 <= int(index.min()) <= int(index.max()) < patches:
        raise ValueError(
            f"mask indices must lie in 0..{patches - 1}, got {index.min()} to {index.max()}"
        )
    return index


def select_patches(features: Tensor, index: Tensor | None) -> Tensor:
    """[B,N,C] -> [B,K,C], the patches index[B,K]; all of them without an index."""
    return features if index is None else take_rows(features, index)


def check_grid(grid: int | Iterable[int] | None) -> tuple[int, int] | None:
    """(rows, columns) of a grid given as one number or two; ValueError for anything else."""
    if grid is None:
        return None
    pair = (grid, grid) if isinstance(grid, int) else tuple(grid)
    if len(pair) != 2 or not all(isinstance(n, int) and n > 0 for n in pair):
        raise UsageError(f"grid must be two positive whole numbers (rows, columns), not {grid!r}")
    return pair[0], pair[1]


def _keep_whitening_only(module: nn.Module, state: dict, prefix: str, _: dict) -> None:
    for key in [k for k in state if k.startswith(prefix)]:
        if key.removeprefix(prefix) not in _WHITENING:
            del state[key]


def _after_load(module: Any, keys: Any) -> None:
    keys.missing_keys[:] = [k for k in keys.missing_keys if k.rpartition(".")[2] in _WHITENING]
    module.whitened = bool(module.is_whitened)
