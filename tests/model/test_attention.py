"""The attention interface: arguments, the choice of a backend, adapters of absent libraries."""

import logging
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from eva_fast.model.attention import (
    BACKENDS,
    AttentionShape,
    attention,
    backends,
    choose_backend,
    measure_backends,
    set_backend,
)
from eva_fast.ops import attention_backends, attention_choice, dispatch
from eva_fast.ops.measure import kept_choices
from eva_fast.ops.packed_attention import packed_attention_backward

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VIT_G = AttentionShape(32, 257, 257, 16, 88)


@pytest.fixture(autouse=True)
def forget_choices():
    set_backend("auto")
    yield
    set_backend("auto")
    dispatch.set_kernels("auto")


def packed(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_packed_apart_and_mixed_agree():
    qkv = packed(2, 9, 3, 2, 16)
    q, k, v = qkv.unbind(2)
    out, lse = attention(None, qkv)
    for got in (attention(q, qkv[:, :, 1:]), attention(q, (k, v))):
        torch.testing.assert_close(got[0], out)
        torch.testing.assert_close(got[1], lse)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v))
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(attention(q[:, 2:5], (k, v))[0], out[:, 2:5])


def test_gradients_of_q_k_and_v_apart():
    leaves = [packed(1, 7, 2, 8, seed=s).requires_grad_() for s in range(3)]
    out = attention(leaves[0], (leaves[1], leaves[2]), scale=0.3)[0]
    upstream = packed(*out.shape, seed=5)
    wide = [t.transpose(1, 2) for t in leaves]
    want = torch.nn.functional.scaled_dot_product_attention(*wide, scale=0.3).transpose(1, 2)
    found = torch.autograd.grad(out, leaves, upstream)
    for a, b in zip(found, torch.autograd.grad(want, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b)


BAD = {
    "packed has shape": lambda: attention(None, packed(2, 9, 2, 2, 16)),
    "packed has dtype": lambda: attention(None, torch.zeros(2, 9, 3, 2, 16, dtype=torch.int32)),
    "packed has strides": lambda: attention(None, packed(2, 9, 3, 16, 2).transpose(3, 4)),
    "q has shape": lambda: attention(packed(1, 9, 2, 16), packed(2, 9, 2, 2, 16)),
    "q has dtype": lambda: attention(packed(2, 9, 2, 16).half(), packed(2, 9, 2, 2, 16)),
    "q is on device": lambda: attention(packed(2, 9, 2, 16).to("meta"), packed(2, 9, 2, 2, 16)),
    "q is None": lambda: attention(None, (packed(2, 9, 2, 16), packed(2, 9, 2, 16))),
    "two tensors of one shape": lambda: attention(
        packed(2, 9, 2, 16), (packed(2, 9, 2, 16), packed(2, 8, 2, 16))
    ),
    "unknown backend 'quick'": lambda: attention(None, packed(2, 9, 3, 2, 16), backend="quick"),
    "'flash' cannot run.*runs on NVIDIA GPUs": lambda: attention(
        None, packed(2, 9, 3, 2, 16), backend="flash"
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"attention: .*{message}"):
        BAD[message]()


def test_backends_are_filtered():
    on_cpu = backends(88, torch.float32, CPU)
    assert on_cpu["cpu_flash"] is None and on_cpu["math"] is None
    assert "NVIDIA" in on_cpu["flash"] and "NVIDIA" in on_cpu["efficient"]
    half = backends(88, torch.bfloat16, CUDA)
    assert half["flash"] is None and half["triton"] is None and "CPU" in half["cpu_flash"]
    assert "not installed" in half["flash_attn_2"] or half["flash_attn_2"] is None
    full = backends(88, torch.float32, CUDA)
    assert "float16" in full["flash"] and full["efficient"] is None
    odd = backends(90, torch.bfloat16, CUDA)
    assert "multiple of 8" in odd["flash"] and odd["triton"] is None
    assert "up to 128" in backends(160, torch.bfloat16, CUDA)["cudnn"]


@pytest.fixture
def race(monkeypatch, tmp_path):
    """As on a GPU that times the backends as `race.seconds` says; `race.asked` lists what it timed."""
    race = types.SimpleNamespace(asked=[], seconds={"flash": 2e-3, "triton": 1e-3, "cudnn": 3e-3})

    def measure(names, shape, dtype, device):
        race.asked.append(names)
        return {name: s for name, s in race.seconds.items() if name in names}

    monkeypatch.setattr(attention_choice, "measure_backends", measure)
    monkeypatch.setattr(attention_backends, "_capability", lambda index: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr("eva_fast.ops.measure.fingerprint", lambda device: {"device": str(device)})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return race


def test_choice_by_measurement_happens_once(race, caplog):
    with caplog.at_level(logging.INFO, "eva_fast"):
        assert choose_backend(VIT_G, torch.bfloat16, CUDA) == "triton"
    assert "triton 1.000 ms" in caplog.text and "flash 2.000 ms" in caplog.text
    assert "math" not in race.asked[0] and "cpu_flash" not in race.asked[0]
    larger = VIT_G._replace(batch=64)
    assert choose_backend(larger, torch.bfloat16, CUDA) == "triton"
    assert len(race.asked) == 1
    choose_backend(VIT_G._replace(queries=105), torch.bfloat16, CUDA)
    assert len(race.asked) == 2


def test_choice_is_kept_on_disk(race):
    assert choose_backend(VIT_G, torch.bfloat16, CUDA) == "triton"
    choose_backend(VIT_G._replace(queries=105), torch.bfloat16, CUDA)
    race.seconds = {"flash": 1e-3, "triton": 2e-3}
    set_backend("auto")  # as another process would start
    assert choose_backend(VIT_G, torch.bfloat16, CUDA) == "triton"
    assert len(race.asked) == 2
    (kept,) = kept_choices()  # what `eva-fast doctor` shows
    timings = {"flash": 2.0, "triton": 1.0, "cudnn": 3.0}
    assert kept["choices"] == {
        f"attention {queries}x257, 16 heads of 88, bfloat16": {
            "kind": "triton", "milliseconds": timings
        }
        for queries in (257, 105)
    }  # fmt: skip


def test_a_choice_without_any_timing_is_not_kept(race):
    race.seconds = {}
    assert choose_backend(VIT_G, torch.bfloat16, CUDA) == race.asked[0][0]
    assert kept_choices() == []


def test_forced_choices():
    assert choose_backend(VIT_G, torch.float32, CPU) == "cpu_flash"
    set_backend("math")
    assert choose_backend(VIT_G, torch.float32, CPU) == "math"
    assert choose_backend(VIT_G, torch.bfloat16, CUDA) == "math"
    set_backend("triton")  # where it cannot run, the choice is made as usual
    assert choose_backend(VIT_G, torch.float64, CPU) == "cpu_flash"


def test_plain_pytorch_races_what_comes_with_it(race):
    dispatch.set_kernels("torch")
    assert choose_backend(VIT_G, torch.bfloat16, CUDA) == "flash"
    assert "triton" not in race.asked[0] and "flash" in race.asked[0]


def test_measures_on_this_machine():
    shape = AttentionShape(1, 9, 17, 2, 16)
    seconds = measure_backends(["cpu_flash", "math", "flash"], shape, torch.float32, CPU)
    assert set(seconds) == {"cpu_flash", "math"} and min(seconds.values()) > 0


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "math"])
def test_operators_of_pytorch_for_gpus(name):
    """Their signatures and layouts, on fake tensors: the operators themselves need a GPU."""
    with FakeTensorMode():
        qkv = torch.empty(2, 257, 3, 4, 88, dtype=torch.bfloat16, device="cuda")
        q, k, v = qkv.unbind(2)
        out, lse = BACKENDS[name].forward(q, k, v, 0.1)
        assert out.shape == (2, 257, 4, 88) and out.is_contiguous() and out.dtype == q.dtype
        assert lse.shape == (2, 4, 257) and lse.is_contiguous() and lse.dtype == torch.float32
        gradients = torch.empty_like(qkv).unbind(2)
        BACKENDS[name].backward(torch.empty_like(out), q, k, v, out, lse, 0.1, *gradients)


def flash_2():
    """A module with the calls of flash-attn 2.8, computing in plain PyTorch."""
    module = types.ModuleType("flash_attn.flash_attn_interface")

    def _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
        alibi_slopes, return_softmax,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right) == (0.0, False, -1, -1)
        return *BACKENDS["math"].forward(q, k, v, softmax_scale), None, None

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right) == (0.0, False, -1, -1)
        BACKENDS["math"].backward(dout, q, k, v, out, softmax_lse, softmax_scale, dq, dk, dv)

    module._flash_attn_forward, module._flash_attn_backward = (
        _flash_attn_forward,
        _flash_attn_backward,
    )
    return {"flash_attn": types.ModuleType("flash_attn"), module.__name__: module}


def flash_3():
    """A module with the calls of flash-attn 3, as far as they are used."""
    module = types.ModuleType("flash_attn_interface")

    def _flash_attn_forward(q, k, v, k_new=None, v_new=None, softmax_scale=None, causal=False):
        return *BACKENDS["math"].forward(q, k, v, softmax_scale), None, None

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, dq=None, dk=None,
        dv=None, softmax_scale=None, is_causal=False,
    ):  # fmt: skip
        BACKENDS["math"].backward(dout, q, k, v, out, softmax_lse, softmax_scale, dq, dk, dv)

    module._flash_attn_forward, module._flash_attn_backward = (
        _flash_attn_forward,
        _flash_attn_backward,
    )
    return {module.__name__: module}


def xformers():
    """A module with xFormers' calls; its log-sum-exp is padded to a multiple of 32."""
    module = types.ModuleType("xformers.ops")

    def memory_efficient_attention_forward_requires_grad(query, key, value, scale=None):
        out, lse = BACKENDS["math"].forward(query, key, value, scale)
        return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32))

    def memory_efficient_attention_backward(grad, output, lse, query, key, value, scale=None):
        assert lse.shape[-1] % 32 == 0
        gradients = [torch.empty_like(t) for t in (query, key, value)]
        lse = lse[..., : query.shape[1]]
        BACKENDS["math"].backward(grad, query, key, value, output, lse, scale, *gradients)
        return gradients

    module.memory_efficient_attention_forward_requires_grad = (
        memory_efficient_attention_forward_requires_grad
    )
    module.memory_efficient_attention_backward = memory_efficient_attention_backward
    return {"xformers": types.ModuleType("xformers"), module.__name__: module}


LIBRARIES = {"flash_attn_2": flash_2, "flash_attn_3": flash_3, "xformers": xformers}


@pytest.mark.parametrize("name", LIBRARIES)
def test_adapters_of_libraries_that_are_not_installed(name, monkeypatch):
    """The adapter's side of the call: argument names and order, layouts, filled views."""
    for module, stub in LIBRARIES[name]().items():
        monkeypatch.setitem(sys.modules, module, stub)
    qkv = packed(2, 9, 3, 2, 16)
    q, k, v = qkv.unbind(2)
    out, lse = BACKENDS[name].forward(q, k, v, 0.25)
    want, want_lse = BACKENDS["math"].forward(q, k, v, 0.25)
    torch.testing.assert_close((out, lse), (want, want_lse))
    assert lse.is_contiguous()
    dout = packed(2, 9, 2, 16, seed=1)
    found, expected = (torch.full_like(qkv, float("nan")) for _ in range(2))
    BACKENDS[name].backward(dout, q, k, v, out, lse, 0.25, *found.unbind(2))
    BACKENDS["math"].backward(dout, q, k, v, out, lse, 0.25, *expected.unbind(2))
    torch.testing.assert_close(found, expected)


def test_one_operator_and_its_flops_on_meta_tensors():
    """2 products forward, 5 backward (the scores are computed again), of 2 FLOPs a multiply-add."""
    qkv = torch.empty(2, 257, 3, 4, 88, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counter:
        out, lse = attention(None, qkv)
        packed_attention_backward(out, None, qkv, out, lse, 0.1)
    product = 2 * 2 * 4 * 257 * 257 * 88
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counted == {
        "eva_fast.packed_attention": 2 * product,
        "eva_fast.packed_attention_backward": 5 * product,
    }
    q, kv = qkv[:, :105, 0], qkv[:, :, 1:]
    with FlopCounterMode(display=False) as counter:
        attention(q, kv)
    assert counter.get_total_flops() == 2 * 2 * 2 * 4 * 105 * 257 * 88
