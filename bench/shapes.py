"""The shapes that subjects are set up at: real students of 224 pixels, and a tiny one for checks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from eva_fast.model import ModelSizes, sizes_of
from eva_fast.planning.counter import default_masked


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A student and a batch on a device."""

    name: str
    sizes: ModelSizes
    batch: int
    device: str
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return self.sizes.num_patches + 1

    @property
    def rows(self) -> int:
        """Tokens of the whole batch."""
        return self.batch * self.tokens

    @property
    def masked(self) -> int:
        """Masked patches an image."""
        return default_masked(self.sizes)

    @property
    def label(self) -> str:
        return f"{self.name} b{self.batch} {str(self.dtype).removeprefix('torch.')}"

    @property
    def id(self) -> str:
        """For the names of tests."""
        return f"{self.name.lower().replace('/', '')}-b{self.batch}"

    def randn(self, *size: int, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        """Standard normal values, the same for every variant."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(*size, generator=generator).to(self.device, dtype or self.dtype)

    def mask(self) -> Tensor:
        """int32 [B,K] of ascending masked patches."""
        return self._masked_patches().int().to(self.device)

    def bool_mask(self) -> Tensor:
        """The same as bool [B,N]."""
        mask = torch.zeros(self.batch, self.sizes.num_patches, dtype=torch.bool)
        return mask.scatter_(1, self._masked_patches(), True).to(self.device)

    def visible(self) -> Tensor:
        """int32 [B,N/4] of ascending patches: those that MAE keeps."""
        generator = torch.Generator().manual_seed(13)
        order = torch.rand(self.batch, self.sizes.num_patches, generator=generator).argsort(1)
        return order[:, : self.sizes.num_patches // 4].sort(1).values.int().to(self.device)

    def _masked_patches(self) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        order = torch.rand(self.batch, self.sizes.num_patches, generator=generator).argsort(1)
        return order[:, : self.masked].sort(1).values

    def images(self) -> Tensor:
        """uint8 [B,3,H,W]."""
        generator = torch.Generator().manual_seed(11)
        side = self.sizes.img_size
        images = torch.randint(256, (self.batch, 3, side, side), generator=generator)
        return images.to(self.device, torch.uint8)


def vit(size: str, batch: int, device: str, dtype: torch.dtype, depth: int | None = None) -> Shape:
    sizes = sizes_of(f"eva_{size}_patch14_224", predict_dim=768, depth=depth)
    title = {"ti": "Ti", "s": "S", "b": "B", "l": "L"}.get(size, size)
    return Shape(name=f"ViT-{title}/14", sizes=sizes, batch=batch, device=device, dtype=dtype)


TINY = ModelSizes(
    img_size=56, patch_size=14, embed_dim=64, depth=2, num_heads=2, mlp_hidden=96, predict_dim=32
)


def check_shape(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Shape:
    """For `pytest bench/` without timing: seconds for all subjects."""
    return Shape(name="tiny", sizes=TINY, batch=2, device=device, dtype=dtype)


def op_shapes(quick: bool) -> list[Shape]:
    """Where ops, attention and single blocks are timed."""
    if torch.cuda.is_available():
        sizes = ("b", "g") if quick else ("b", "l", "g")
        return [vit(s, 32, "cuda", torch.bfloat16) for s in sizes]
    return [vit(s, 8, "cpu", torch.float32) for s in (("s",) if quick else ("ti", "s"))]


def other_shapes(quick: bool) -> list[Shape]:
    """Where teacher, optimiser, checkpoints and the first step are timed."""
    if quick and not torch.cuda.is_available():
        return [vit("ti", 8, "cpu", torch.float32)]
    return op_shapes(quick)[-1:]


def step_shapes(quick: bool) -> list[Shape]:
    """Where the whole step is timed; several batches of one model show memory over batch."""
    if torch.cuda.is_available():
        big = [vit("g", b, "cuda", torch.bfloat16) for b in ((32,) if quick else (8, 16, 32))]
        return [vit("b", 32, "cuda", torch.bfloat16), *big]
    if quick:
        return [vit("ti", b, "cpu", torch.float32) for b in (1, 4, 8)] + [
            vit("s", 8, "cpu", torch.float32)
        ]
    tiny = [vit("ti", b, "cpu", torch.float32) for b in (1, 2, 4, 8, 16)]
    return [*tiny, *(vit("s", b, "cpu", torch.float32) for b in (4, 8))]


def prediction_shapes(quick: bool) -> list[Shape]:
    """Where the CPU's predicted step is compared with the measured one."""
    chosen = (("ti", 8),) if quick else (("ti", 8), ("s", 8), ("b", 4))
    return [vit(size, batch, "cpu", torch.float32) for size, batch in chosen]
