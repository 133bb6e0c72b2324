"""The input pipeline on one core: from the bytes of a JPEG to a training sample."""

import torch

from bench.harness import Case, Variant
from bench.kit import Kit
from bench.photos import jpegs
from bench.shapes import Shape
from bench.test_input import CLIP_MEAN, CLIP_STD, ours, plain

MODES = ("sample",)


def subject(shape: Shape, mode: str, kit: Kit) -> Case:
    """Both ways crop the same boxes of the same photographs (see `bench.test_input`); compared are
    the crops, whose resampling differs by rounding and by where a JPEG is scaled."""
    files = jpegs(16 if kit.timed else 2)
    mean, std = torch.tensor(CLIP_MEAN).view(3, 1, 1), torch.tensor(CLIP_STD).view(3, 1, 1)

    def run(way):
        return lambda: [way(data, seed) for seed, data in enumerate(files)]

    def plain_crops():
        return [torch.stack([(plain(d, s)[0] * std + mean) * 255 for s, d in enumerate(files)])]

    def our_crops():
        return [torch.stack([torch.from_numpy(ours(d, s)[0]).float() for s, d in enumerate(files)])]

    return Case(
        subject="input",
        mode=mode,
        shape="JPEG 500x375 to 224",
        device="cpu",
        variants={
            "reference": Variant(run(plain), plain_crops),
            "eva_fast": Variant(run(ours), our_crops),
        },
        missing=kit.missing,
        tolerance=3e-2,
        batch=len(files),
        weigh=False,
    )
