"""Sizes of a Swin V2 student: the named ones, and any others by keyword."""

import re
from dataclasses import dataclass

from eva_fast.errors import UsageError
from eva_fast.layers.window import Windows

# Width, depth of the third stage, heads of the first; the other stages have two blocks.
PRESETS = {"tiny": (96, 6, 3), "small": (96, 18, 3), "base": (128, 18, 4), "large": (192, 18, 6)}
OTHER_STAGES = 6
_NAME = re.compile(r"swinv2_(?P<size>[a-z]+)_window(?P<window>\d+)_(?P<image>\d+)")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: its width, its blocks, and the windows of those that do not shift."""

    dim: int
    depth: int
    num_heads: int
    windows: Windows


@dataclass(frozen=True, kw_only=True, slots=True)
class SwinSizes:
    """Everything that fixes the shapes of a Swin V2. ValueError for sizes that cannot be built."""

    img_size: int = 224
    """Side of the square input in pixels."""
    patch_size: int = 4
    """Side of a patch in pixels; a token of the last stage covers 2^(stages - 1) patches a side."""
    embed_dim: int = 128
    """Width of the first stage; each further one has twice the width."""
    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each stage."""
    num_heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""
    window_size: int = 14
    """Side of a window in tokens; a stage whose map is no larger is one window."""
    mlp_ratio: int = 4
    """Width inside the MLP over the width around it."""
    predict_dim: int = 1
    """Width of the prediction: the teacher's feature dimension. The student itself has no head."""

    def __post_init__(self):
        numbers = (
            self.img_size, self.patch_size, self.embed_dim, self.window_size, self.mlp_ratio,
            self.predict_dim, *self.depths, *self.num_heads,
        )  # fmt: skip
        if not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in numbers):
            raise UsageError(f"sizes of a Swin are whole numbers of at least 1: {self}")
        if len(self.depths) != len(self.num_heads) or not self.depths:
            raise UsageError(f"depths {self.depths} and num_heads {self.num_heads} name each stage")
        coarsest = self.patch_size * 2 ** (len(self.depths) - 1)
        if self.img_size % coarsest:
            raise UsageError(
                f"img_size {self.img_size} is not a multiple of {coarsest}: {len(self.depths)} stages "
                f"halve patches of {self.patch_size} pixels {len(self.depths) - 1} times"
            )
        for stage in self.stages:  # windows that do not fit say so
            if stage.dim % stage.num_heads:
                raise UsageError(
                    f"width {stage.dim} is not divisible by {stage.num_heads} attention heads"
                )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """From the first, of the widest map, to the last."""
        side = self.img_size // self.patch_size
        return tuple(
            Stage(
                self.embed_dim << s, depth, heads,
                Windows.fitting(side >> s, self.window_size, shifted=False),
            )
            for s, (depth, heads) in enumerate(zip(self.depths, self.num_heads))
        )  # fmt: skip

    @property
    def depth(self) -> int:
        """Blocks of all stages."""
        return sum(self.depths)

    @property
    def has_cls(self) -> bool:
        """Whether a CLS token stands in front of the patches."""
        return False

    @property
    def width(self) -> int:
        """Of the last stage's tokens."""
        return self.embed_dim << (len(self.depths) - 1)

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens of the last stage down and across."""
        side = self.img_size // self.patch_size >> (len(self.depths) - 1)
        return side, side

    @property
    def num_patches(self) -> int:
        """Tokens of the last stage."""
        return self.grid[0] * self.grid[1]


def is_swin(name: str | None) -> bool:
    """Whether a student's name is one of Swin V2."""
    return name is not None and name.startswith("swinv2_")


def swin_sizes_of(name: str, **overrides: int | None) -> SwinSizes:
    """Sizes of `swinv2_SIZE_windowW_R`, as timm names them.

    Overrides that are not None win: img_size, patch_size, embed_dim, predict_dim; depth, all blocks, of
    which the third stage has what the others leave; num_heads, of the first stage, each further one
    twice as many. ValueError names what is possible."""
    match = _NAME.fullmatch(name)
    if not match or match["size"] not in PRESETS:
        raise UsageError(
            f"unknown model {name!r}: write swinv2_SIZE_windowW_R with SIZE one of "
            f"{', '.join(PRESETS)}, W the window's side in tokens and R the image's in pixels, for "
            "example swinv2_base_window14_224"
        )
    chosen = {k: v for k, v in overrides.items() if v is not None}
    if "mlp_hidden" in chosen:
        raise UsageError("mlp_hidden is of a ViT: a Swin's MLP is four times as wide as each stage")
    if chosen.pop("channels", 3) != 3:
        raise UsageError("images of other than three channels are of a ViT, or of timm's networks")
    width, third, heads = PRESETS[match["size"]]
    depth, heads = chosen.pop("depth", third + OTHER_STAGES), chosen.pop("num_heads", heads)
    if depth <= OTHER_STAGES:
        raise UsageError(
            f"depth {depth} leaves no block for the third of a Swin's four stages: at least "
            f"{OTHER_STAGES + 1}"
        )
    named = dict(img_size=int(match["image"]), window_size=int(match["window"]), embed_dim=width)
    return SwinSizes(
        **{**named, **chosen},
        depths=(2, 2, depth - OTHER_STAGES, 2),
        num_heads=(heads, 2 * heads, 4 * heads, 8 * heads),
    )
