"""One 64-bit seed a sample: a pure function of the run's seed, the image and the view.

The mixing is splitmix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), evaluated on uint64 with wrap-around. A sample's crop, flip and mask therefore depend
neither on workers nor on ranks, and a cache of teacher features can be keyed by (image, view).
"""

import numpy as np

MASK64 = (1 << 64) - 1
HALF, LOWER = 2.0**-32, 2**32 - 1
"""The 64 bits of a seed give two draws: (bits >> 32) * HALF and (bits & LOWER) * HALF, in [0, 1)."""
_GAMMA = 0x9E3779B97F4A7C15
_GAMMA_U64 = np.uint64(_GAMMA)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31 = np.uint64(30), np.uint64(27), np.uint64(31)


def mix64(value: int) -> int:
    """splitmix64's finaliser: a bijection of 64-bit integers whose output bits look independent."""
    value = (value + _GAMMA) & MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK64
    return value ^ (value >> 31)


def mix64_array(values: np.ndarray) -> np.ndarray:
    """`mix64` of every element of a uint64 array; numpy wraps arrays around without a warning."""
    values = np.asarray(values, np.uint64) + _GAMMA_U64
    values = (values ^ (values >> _S30)) * _M1
    values = (values ^ (values >> _S27)) * _M2
    return values ^ (values >> _S31)


def sample_seed(seed: int, image_id: int, view: int) -> int:
    """The seed (uint64 as an int) of view `view` of image `image_id` in a run with `seed`."""
    return mix64(mix64(mix64(seed & MASK64) ^ (image_id & MASK64)) ^ (view & MASK64))


def sample_seeds(seed: int, image_ids: np.ndarray, views: np.ndarray | int) -> np.ndarray:
    """`sample_seed` for arrays: ids int64 [B], views int64 [B] or one number -> uint64 [B]."""
    ids = np.asarray(image_ids).astype(np.uint64)
    views = np.broadcast_to(np.asarray(views).astype(np.uint64), ids.shape)
    return mix64_array(mix64_array(np.uint64(mix64(seed & MASK64)) ^ ids) ^ views)
