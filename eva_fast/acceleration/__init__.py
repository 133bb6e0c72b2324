"""Fused layers inside other libraries' vision transformers.

    network      finds the blocks of a network, checks all, then changes all
    anatomy      what a block consists of, and what may be read as that
    fused        a block's forward on `eva_fast.layers`
    classes      the class that a changed block has, a subclass of its own
    timm_blocks, transformers_blocks, open_clip_blocks, official_blocks
                 how each library's block is read, and how it is called
    probe        a block against its library's own forward, in float64
    wrapped      what was done to a network already and is in the way
    report       what was taken and what was left, and why

No library is imported here: blocks are known by the names of their classes.
"""

from eva_fast.acceleration.network import accelerate
from eva_fast.acceleration.report import BlockReport, Report

__all__ = ["BlockReport", "Report", "accelerate"]
