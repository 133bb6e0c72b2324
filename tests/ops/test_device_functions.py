"""The fp32 bounds with division, roots and exponentials as inexact as a GPU's.

NumPy rounds them right; the instructions that Triton emits for float32 do not, so that a bound of twice
plain PyTorch's error, held in the interpreter, could fail there. What PTX promises (ISA 8): div.full and
ex2.approx 2 units in the last place, sqrt.approx a relative 2^-23. Here the interpreter's results are
wrong by up to that. `tl.div_rn` and `tl.sqrt_rn` stay right, as they do on a GPU.
"""

import numpy as np
import pytest
import torch

from eva_fast.ops import registry
from tests.ops import test_add_layer_norm, test_bias_gelu, test_negative_cosine

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(not registry.interpreted(), reason="runs under TRITON_INTERPRET=1"),
]
UNIT = 2.0**-23
# Added before the last rounding, which takes half a unit of its own.
ERRORS = {
    "create_fdiv": 1.5 * UNIT,
    "create_sqrt": 0.5 * UNIT,
    "create_exp": 1.5 * UNIT,
    "create_exp2": 1.5 * UNIT,
}


def inexact(function, error):
    """The same, wrong by a share of `error` that depends on nothing but the value."""
    from triton.runtime.interpreter import TensorHandle

    def run(self, *arguments):
        handle = function(self, *arguments)
        data = np.ascontiguousarray(handle.data)
        if data.dtype != np.float32:
            return handle
        mixed = data.view(np.uint32) * np.uint32(2654435761)  # Knuth's multiplicative hash
        wrong = 1.0 + error * (mixed / 2.0**31 - 1.0)
        with np.errstate(all="ignore"):
            data = (data * wrong).astype(np.float32).reshape(np.shape(handle.data))
        return TensorHandle(data, handle.dtype)

    return run


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    from triton.runtime.interpreter import InterpreterBuilder

    for name, error in ERRORS.items():
        exact = getattr(InterpreterBuilder, name)
        monkeypatch.setattr(InterpreterBuilder, name, inexact(exact, error))


CASES = {
    "add_layer_norm, no branch bias": (test_add_layer_norm, "no branch bias, 176"),
    "add_layer_norm, no scale": (test_add_layer_norm, "no scale, 88"),
    "negative_cosine": (test_negative_cosine, "7 rows of 768"),
    "erf gelu": (test_bias_gelu, "7 rows of 279"),
    "quick gelu": (test_bias_gelu, "quick"),
}


@pytest.mark.parametrize("case", CASES)
def test_bounds_hold(kernels, case):
    module, name = CASES[case]
    module.test_against_float64(kernels, name, torch.float32)
