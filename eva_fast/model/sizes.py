"""Sizes of a student: the named presets, and any others by keyword."""

import re
from dataclasses import dataclass, fields, replace

from eva_fast.errors import UsageError

# Width, depth, heads, MLP hidden. g is EVA-01's giant; the others are the common ViT sizes.
PRESETS = {
    "ti": (192, 12, 3, 768),
    "s": (384, 12, 6, 1536),
    "b": (768, 12, 12, 3072),
    "l": (1024, 24, 16, 4096),
    "h": (1280, 32, 16, 5120),
    "g": (1408, 40, 16, 6144),
}
LONG = {"tiny": "ti", "small": "s", "base": "b", "large": "l", "huge": "h", "giant": "g"}
_NAME = re.compile(r"(?P<kind>eva|vit|beit)_(?P<size>[a-z]+)_patch(?P<patch>\d+)_(?P<image>\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSizes:
    """Everything that fixes the shapes of a student. ValueError for sizes that cannot be built."""

    img_size: int = 224
    """Side of the square input in pixels."""
    patch_size: int = 14
    """Side of a patch in pixels."""
    embed_dim: int = 1408
    """Width of the residual stream."""
    depth: int = 40
    """Number of blocks."""
    num_heads: int = 16
    """Attention heads; they divide the width."""
    mlp_hidden: int = 6144
    """Width of the MLP between fc1 and fc2."""
    predict_dim: int = 768
    """Width of the prediction: the teacher's feature dimension."""
    channels: int = 3
    """Of the images."""

    def __post_init__(self):
        for f in fields(self):
            value = getattr(self, f.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise UsageError(f"{f.name} must be a whole number of at least 1, got {value!r}")
        if self.img_size % self.patch_size:
            raise UsageError(
                f"img_size {self.img_size} is not a multiple of patch_size {self.patch_size}"
            )
        if self.embed_dim % self.num_heads:
            raise UsageError(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across."""
        side = self.img_size // self.patch_size
        return side, side

    @property
    def has_cls(self) -> bool:
        """Whether a CLS token stands in front of the patches."""
        return True

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]


def is_beit(name: str | None) -> bool:
    """Whether a name asks for `BeitViT`: a relative position bias and LayerScale instead of a position
    embedding."""
    match = _NAME.fullmatch(name or "")
    return match is not None and match["kind"] == "beit"


def sizes_of(name: str | None, **overrides: int | None) -> ModelSizes:
    """Sizes of a preset such as `eva_g_patch14_224`, `beit_base_patch16_224`, `vit_tiny_patch8_64`.

    Any patch and image size may stand in the name; `overrides` that are not None win over it.
    `name=None` takes every size from `overrides`. ValueError names what is possible.
    """
    chosen = {k: v for k, v in overrides.items() if v is not None}
    if name is None:
        needed = [f.name for f in fields(ModelSizes) if f.name != "channels"]
        missing = [name for name in needed if name not in chosen]
        if missing:
            raise UsageError(
                f"without a model name these sizes are needed too: {', '.join(missing)}"
            )
        return ModelSizes(**chosen)
    match = _NAME.fullmatch(name)
    size = match and LONG.get(match["size"], match["size"])
    if not match or size not in PRESETS:
        raise UsageError(
            f"unknown model {name!r}: write eva_SIZE_patchP_R (or vit_..., beit_...) with SIZE one of "
            f"{', '.join(PRESETS)} or {', '.join(LONG)}, P the patch and R the image side in pixels, "
            "for example eva_g_patch14_224; or swinv2_SIZE_windowW_R; or give every size by keyword"
        )
    width, depth, heads, hidden = PRESETS[size]
    sizes = dict(
        img_size=int(match["image"]),
        patch_size=int(match["patch"]),
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        mlp_hidden=hidden,
    )
    return replace(ModelSizes(), **{**sizes, **chosen})
