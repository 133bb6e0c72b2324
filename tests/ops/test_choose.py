import logging

import pytest
import torch

from eva_fast import native, ops
from eva_fast.ops import choose, registry


@pytest.fixture(autouse=True)
def automatic():
    yield
    choose.set_kernels("auto")


@pytest.mark.parametrize(
    "name",
    ["patchify", "embed_tokens", "embed_kept", "unshuffle_tokens", "add_layer_norm", "bias_gelu",
     "masked_gather", "layer_norm_project", "negative_cosine", "masked_cosine_head",
     "smooth_l1", "packed_attention", "rotary", "adamw"],
)  # fmt: skip
def test_every_op_has_its_name_and_its_reference(name):
    assert callable(getattr(ops, name)) and callable(getattr(ops, name).reference)


def test_auto_takes_the_device_and_what_is_built(monkeypatch):
    choose.set_kernels("auto")
    assert choose.implementation("bias_gelu", "cuda") == "triton"
    assert choose.implementation("bias_gelu", "xpu") == "torch"
    monkeypatch.setattr(native, "obstacle", lambda: "is not built")
    choose.set_kernels("auto")
    assert choose.implementation("bias_gelu", "cpu") == "torch"


def test_an_override_covers_the_backward_unless_that_is_named():
    choose.set_kernels("auto", {"bias_gelu": "torch"})
    assert choose.implementation("bias_gelu", "cuda") == "torch"
    assert choose.implementation("bias_gelu_backward", "cuda") == "torch"
    assert choose.implementation("add_layer_norm", "cuda") == "triton"
    choose.set_kernels("torch", {"bias_gelu_backward": "triton"})
    assert choose.implementation("bias_gelu", "cuda") == "torch"
    assert choose.implementation("bias_gelu_backward", "cuda") == "triton"


def test_float64_runs_on_pytorch():
    choose.set_kernels("auto")
    h = torch.randn(3, 20, dtype=torch.float64)
    torch.testing.assert_close(ops.bias_gelu(h, None), torch.nn.functional.gelu(h))


def test_a_registered_function_runs():
    calls = []
    original = registry.find("masked_gather").function("torch")
    try:
        ops.register("masked_gather", "torch", lambda *a: calls.append(a) or original(*a))
        choose.set_kernels("torch")
        ops.masked_gather(torch.randn(1, 3, 4), torch.zeros(1, 1, dtype=torch.int32))
    finally:
        ops.register("masked_gather", "torch", original)
    assert len(calls) == 1


def test_an_op_without_the_forced_kind_runs_on_pytorch():
    choose.set_kernels("triton")
    assert choose.implementation("gemm", "cuda") == "torch"


def test_what_cannot_run_is_an_error():
    with pytest.raises(ValueError, match="unknown kernels 'cutlass': choose from .*'auto'"):
        choose.set_kernels("cutlass")
    with pytest.raises(ValueError, match="unknown kernels 'fast' for bias_gelu: choose from"):
        choose.set_kernels("auto", {"bias_gelu": "fast"})
    with pytest.raises(ValueError, match="no op 'gelu': choose from .*bias_gelu"):
        choose.set_kernels("auto", {"gelu": "torch"})
    choose.set_kernels("triton")
    with pytest.raises(ValueError, match="'triton' cannot run bias_gelu on cpu .*TRITON_INTERPRET"):
        ops.bias_gelu(torch.randn(3, 20), None)
    choose.set_kernels("native")
    with pytest.raises(ValueError, match="'native' cannot run bias_gelu on cuda"):
        choose.implementation("bias_gelu", "cuda")


def test_the_choice_is_logged(caplog):
    with caplog.at_level(logging.INFO, logger="eva_fast"):
        choose.set_kernels("torch", {"bias_gelu": "native"})
    assert "kernels: torch, except {'bias_gelu': 'native'}" in caplog.text
