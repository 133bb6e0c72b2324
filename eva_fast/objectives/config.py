"""Options of the objective."""

from dataclasses import dataclass

from eva_fast.options import TextOrObject, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Objective."""

    recipe: str | None = None
    """Published defaults of an objective by name, all that they say of student, crop, mask, teacher and
    optimiser: eva-g14. Options that are given win over it."""
    objective: TextOrObject = "eva"
    """What the student is trained towards: eva (the teacher's features of masked patches), mae (the
    same from the visible patches alone, with a decoder), pixels (the dropped patches themselves),
    vqkd (a tokenizer whose codes tell the teacher's features); from Python also an Objective of one's
    own."""
    mask_count: int | None = None
    """Masked patches an image; by default EVA-01's share, 105 of 256 (eva), or three quarters (mae,
    pixels)."""
    mask_min_block: int | None = None
    """eva: smallest block of masked patches; by default a sixteenth of the patches (16 of 256)."""
    decoder_dim: int = 512
    """mae, pixels: width of the decoder."""
    decoder_depth: int | None = None
    """mae, pixels, vqkd: blocks of the decoder; by default 4 for mae, 8 for pixels and 3 for vqkd."""
    decoder_heads: int = 16
    """mae, pixels: attention heads of the decoder."""
    norm_pix: bool = True
    """pixels: predict each patch less its mean, over its deviation."""
    codebook_size: int = 8192
    """vqkd: codes in the tokenizer's codebook."""
    code_dim: int = 32
    """vqkd: numbers a code has."""

    def __post_init__(self):
        for name in ("codebook_size", "code_dim", "decoder_depth"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"{name} must be at least 1, got {value}")
