import logging

import pytest
import torch

from eva_fast import native, ops
from eva_fast.ops import dispatch


@pytest.fixture(autouse=True)
def automatic():
    yield
    dispatch.set_kernels("auto")


@pytest.mark.parametrize(
    "name",
    ["patchify", "embed_tokens", "add_layer_norm", "bias_gelu", "masked_gather",
     "layer_norm_project", "negative_cosine", "masked_cosine_head", "packed_attention", "adamw"],
)  # fmt: skip
def test_every_op_has_its_name_and_its_reference(name):
    assert callable(getattr(ops, name)) and callable(getattr(ops, name).reference)


def test_auto_takes_the_device_and_what_is_built(monkeypatch):
    dispatch.set_kernels("auto")
    assert dispatch.implementation("bias_gelu", "cuda") == "triton"
    assert dispatch.implementation("bias_gelu", "xpu") == "torch"
    monkeypatch.setattr(native, "available", lambda: False)
    dispatch.set_kernels("auto")
    assert dispatch.implementation("bias_gelu", "cpu") == "torch"


def test_an_override_covers_the_backward_unless_that_is_named():
    dispatch.set_kernels("auto", {"bias_gelu": "torch"})
    assert dispatch.implementation("bias_gelu", "cuda") == "torch"
    assert dispatch.implementation("bias_gelu_backward", "cuda") == "torch"
    assert dispatch.implementation("add_layer_norm", "cuda") == "triton"
    dispatch.set_kernels("torch", {"bias_gelu_backward": "triton"})
    assert dispatch.implementation("bias_gelu", "cuda") == "torch"
    assert dispatch.implementation("bias_gelu_backward", "cuda") == "triton"


def test_float64_runs_on_pytorch():
    dispatch.set_kernels("auto")
    h = torch.randn(3, 20, dtype=torch.float64)
    torch.testing.assert_close(ops.bias_gelu(h, None), torch.nn.functional.gelu(h))


def test_a_registered_function_runs():
    calls = []
    original = dispatch._functions["masked_gather", "torch"]
    try:
        dispatch.register("masked_gather", "torch", lambda *a: calls.append(a) or original(*a))
        dispatch.set_kernels("torch")
        ops.masked_gather(torch.randn(1, 3, 4), torch.zeros(1, 1, dtype=torch.int32))
    finally:
        dispatch.register("masked_gather", "torch", original)
    assert len(calls) == 1


def test_an_op_without_the_forced_kind_runs_on_pytorch():
    dispatch.set_kernels("triton")
    assert dispatch.implementation("no_such_op", "cuda") == "torch"


def test_what_cannot_run_is_an_error():
    with pytest.raises(ValueError, match="unknown kernels 'cutlass': choose from .*'auto'"):
        dispatch.set_kernels("cutlass")
    with pytest.raises(ValueError, match="unknown kernels 'fast'"):
        dispatch.set_kernels("auto", {"bias_gelu": "fast"})
    dispatch.set_kernels("triton")
    with pytest.raises(ValueError, match="'triton' cannot run bias_gelu on cpu .*TRITON_INTERPRET"):
        ops.bias_gelu(torch.randn(3, 20), None)
    dispatch.set_kernels("native")
    with pytest.raises(ValueError, match="'native' cannot run bias_gelu on cuda"):
        dispatch.implementation("bias_gelu", "cuda")


def test_the_choice_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="eva_fast"):
        dispatch.set_kernels("torch", {"bias_gelu": "native"})
    assert "kernels: torch, except {'bias_gelu': 'native'}" in caplog.text
