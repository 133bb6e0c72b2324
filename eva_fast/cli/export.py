"""`eva-fast export`."""

import logging
from pathlib import Path
from typing import Literal

from eva_fast.cli.words import Name

log = logging.getLogger(__name__)


def export(
    run: Name,
    format: Literal["official", "timm", "hf", "hf-vit", "open_clip"] = "official",
    out: Path | None = None,
    img_size: int | None = None,
    patch_size: int | None = None,
    resize: Literal["timm", "official"] = "timm",
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
) -> None:
    """Write a run's weights for another library, and print the Python that loads them.

    Args:
        run: a run's folder, one of its checkpoints, or a weights file.
        format: official (EVA-01's code; --out FILE.pt for a checkpoint), timm (one file for its eva_*
            models), hf (a folder for timm's local-dir: and hf-hub: and transformers' AutoModel), hf-vit
            (a folder for transformers' own ViTModel), open_clip (a folder: its timm image tower).
        out: file or folder to write; by default model.FORMAT in the run's folder.
        img_size: resize positions to this image side in pixels first.
        patch_size: resize the patch convolution to this patch side in pixels first.
        resize: timm (patches as FlexiViT, positions antialiased), official (plain bicubic).
        dtype: of the numbers; other than float32 for the format official alone, published in float16.
    """
    from eva_fast.recipes.export import export as write

    written = write(
        run,
        out,
        format=format,
        img_size=img_size,
        patch_size=patch_size,
        resize=resize,
        dtype=dtype,
    )
    log.info("wrote %s; Python that loads it:", written.path)
    print(written.snippet, end="")
