"""The order of an epoch: a pseudo-random bijection evaluated position by position, never stored.

A permutation of 30 million images would be 240 MB a process; a Feistel network over the next power
of two, walked until the value falls inside the range (Black and Rogaway, "Ciphers with arbitrary
finite domains", 2002), gives any element of a permutation in O(1) and no memory.
"""

import numpy as np

from eva_fast.data.samples.seeds import mix64, mix64_array
from eva_fast.data.sources.base import Part

_ROUNDS = 8


def permute(count: int, key: int, positions: np.ndarray) -> np.ndarray:
    """Elements `positions` (int64, each in [0, count)) of the permutation of range(count) by `key`."""
    bits = max(2, (count - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = np.uint64((1 << low_bits) - 1), np.uint64((1 << (bits - low_bits)) - 1)
    keys = [np.uint64(mix64(key ^ mix64(round_))) for round_ in range(_ROUNDS)]
    values = np.asarray(positions).astype(np.uint64)
    outside = np.arange(values.size)
    while outside.size:  # cycle walking: the domain is at most twice the range, so this is short
        value = values[outside]
        high, low = value >> np.uint64(low_bits), value & low_mask
        for round_, round_key in enumerate(keys):
            if round_ % 2:
                low = low ^ (mix64_array(high ^ round_key) & low_mask)
            else:
                high = high ^ (mix64_array(low ^ round_key) & high_mask)
        value = (high << np.uint64(low_bits)) | low
        values[outside] = value
        outside = outside[value >= np.uint64(count)]
    return values.astype(np.int64)


class Order:
    """Which image, and which view of it, stands at each position of each epoch.

    `parts` cover the images of a source. An epoch has `len(order)` = sum of the parts' draws
    positions. A part that draws fewer images than it has goes on in the next epoch where it
    stopped, one that draws more starts over, so every image of a part is seen equally often. The
    view is the number of times the part has been gone through; for an unweighted source that is
    the epoch.
    """

    def __init__(self, parts: list[Part], seed: int):
        self.parts = parts
        self.seed = seed
        self._ends = np.cumsum([part.draws for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def samples(self, epoch: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(image ids, views), both int64 [n], of `positions` (int64 [n], < len(self)) of `epoch`."""
        slots = permute(len(self), mix64(mix64(self.seed) ^ epoch), positions)
        ids, views = np.empty_like(slots), np.empty_like(slots)
        which = np.searchsorted(self._ends, slots, side="right")
        for number in np.unique(which):
            part, rows = self.parts[number], np.flatnonzero(which == number)
            inside = slots[rows] - (self._ends[number] - part.draws)
            if part.draws == part.length:  # each image once an epoch: the slot is the image
                ids[rows], views[rows] = part.start + inside, epoch
                continue
            passes, offsets = np.divmod(epoch * part.draws + inside, part.length)
            for turn in np.unique(passes):
                chosen = passes == turn
                key = mix64(mix64(self.seed ^ mix64(int(number) + 1)) ^ int(turn))
                ids[rows[chosen]] = part.start + permute(part.length, key, offsets[chosen])
            views[rows] = passes
        return ids, views
