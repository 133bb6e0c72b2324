"""What the official `--clip_model` and `--cache_dir` mean as a teacher of eva_fast."""

import os

# OpenAI's names of its ViTs: the file that its code keeps, and the name in `openai/NAME`.
CLIPS = {
    "ViT-B/32": ("ViT-B-32.pt", "ViT-B-32"),
    "ViT-B/16": ("ViT-B-16.pt", "ViT-B-16"),
    "ViT-L/14": ("ViT-L-14.pt", "ViT-L-14"),
    "ViT-L/14@336px": ("ViT-L-14-336px.pt", "ViT-L-14-336"),
}


def is_clip(clip_model: str) -> bool:
    """Whether it is one of `CLIPS` or a file or folder."""
    return clip_model in CLIPS or os.path.exists(clip_model)


def teacher_of(clip_model: str, cache_dir: str) -> str:
    """`teacher=`: the file where it is there, else the name by which it is downloaded."""
    if clip_model not in CLIPS:
        return clip_model
    file, name = CLIPS[clip_model]
    kept = os.path.join(cache_dir, file)
    return kept if os.path.isfile(kept) else f"openai/{name}"
