"""Options of the objective."""

from dataclasses import dataclass

from eva_fast.options import TextOrObject, require


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveConfig:
    """Objective."""

    recipe: str | None = None
    """Published defaults of an objective by name, all that they say of student, crop, mask, teacher and
    optimiser: eva-g14 (eva01: with the official launch's precision and sharding), eva-l14, fd-b16,
    fd-l14, fd-swinv2-b, mae-b16, vqkd-b16, beit2-b16. Options that are given win over it."""
    objective: TextOrObject = "eva"
    """What the student is trained towards: eva (the teacher's features of masked patches), fd (Feature
    Distillation: those of all tokens, from the whole image), mae (of dropped patches, from the visible
    ones alone, with a decoder), pixels (the dropped patches themselves),
    vqkd (a tokenizer whose codes tell the teacher's features), tokens (the codes that a tokenizer,
    teacher=RUN, gives to masked patches); from Python also an Objective of one's own."""
    mask_count: int | None = None
    """Masked patches an image; by default EVA-01's share, 105 of 256 (eva), three quarters (mae,
    pixels) or BEiT's 75 of 196 (tokens)."""
    mask_min_block: int | None = None
    """Smallest block of masked patches; by default a sixteenth of the patches, 16 of 256 (eva), or 16 of
    196 (tokens)."""
    mask_max_block: int | None = None
    """Most patches that one block masks; by default all that are still wanted."""
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
    branch_depth: int = 2
    """tokens: blocks of the second prediction, from the CLS token; 0 for none, as in the first BEiT."""

    def __post_init__(self):
        for name in ("codebook_size", "code_dim"):
            value = getattr(self, name)
            require(value >= 1, f"{name} must be at least 1, got {value}")
        require(self.branch_depth >= 0, f"branch_depth must be 0 or more, got {self.branch_depth}")
