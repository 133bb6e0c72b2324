"""Loaders over pictures in memory, and comparisons of their batches, for the tests."""

import json

import torch

from eva_fast.data import Source, build_loader
from tests.data.pictures import encoded


class Memory(Source):
    """Encoded pictures in memory; `bad` ones are noise."""

    def __init__(self, count, bad=()):
        self.count, self.bad = count, set(bad)

    def __len__(self):
        return self.count

    def read(self, number):
        return b"noise" if number in self.bad else encoded(number)

    def name(self, number):
        return f"picture {number}"


SETTINGS = dict(batch_size=6, seed=4)
SAMPLE = dict(image_size=28, patch_size=14, mask_count=2, min_block=1)


def build(source, **changes):
    sample = {} if "fields" in changes else SAMPLE
    return build_loader(source, **{**SETTINGS, **sample, **changes})


def take(source, count, state=None, **changes):
    """(batches as plain tuples, the state after each)."""
    with build(source, **changes) as loader:
        if state is not None:
            loader.load_state_dict(state)
        batches, states = [], []
        for _ in range(count):
            batches.append(plain(next(loader)))
            states.append(json.loads(json.dumps(loader.state_dict())))
    return batches, states


def plain(batch):
    mask = batch.mask if "mask" in batch else batch.ids
    return tuple(x.clone() for x in (batch.images, mask, batch.ids, batch.views))


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a, b) for x, y in zip(one, other) for a, b in zip(x, y)
    )


def ids_of(batches):
    return [i for batch in batches for i in batch[2].tolist()]
