"""The same computations in plain PyTorch: what eva_fast is counted and timed against.

official     EVA-01's student as its code computes it      tuned     as a careful user would write it
training     their AdamW step                              clip_tower  OpenAI's image tower
"""

from eva_fast.baselines.official import OfficialViT
from eva_fast.baselines.tuned import TunedViT

__all__ = ["OfficialViT", "TunedViT"]
