"""Attention by other libraries: arguments, the choice among them, adapters of those that are absent."""

import logging
import sys
import types

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from eva_fast.ops import Case, choose
from eva_fast.ops.packed_attention import (
    BACKWARD,
    OP,
    AttentionShape,
    packed_attention,
    packed_attention_backward,
)
from eva_fast.ops.race import timed_by

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VIT_G = AttentionShape(32, 257, 257, 16, 88)


@pytest.fixture(autouse=True)
def automatic(own_cache):
    """Nothing forced, nothing measured."""


def chosen(shape, dtype, device, op=OP):
    return choose.decide(op, Case(device, dtype, shape)).name


def packed(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_packed_and_apart_agree():
    qkv = packed(2, 9, 3, 2, 16)
    q, k, v = qkv.unbind(2)
    out, lse = packed_attention(None, qkv, 0.25)
    for got in zip(packed_attention(q.clone(), qkv[:, :, 1:], 0.25), (out, lse), strict=True):
        torch.testing.assert_close(*got)
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(1, 2) for t in (q, k, v)), scale=0.25
    ).transpose(1, 2)
    torch.testing.assert_close(out, expected)
    some = packed_attention(q[:, 2:5], torch.stack((k, v), 2), 0.25)[0]
    torch.testing.assert_close(some, out[:, 2:5])


def test_gradients_of_q_k_and_v_apart():
    leaves = [packed(1, 7, 2, 8, seed=s).requires_grad_() for s in range(3)]
    out = packed_attention(leaves[0], torch.stack(leaves[1:], 2), 0.3)[0]
    upstream = packed(*out.shape, seed=5)
    wide = [t.transpose(1, 2) for t in leaves]
    want = torch.nn.functional.scaled_dot_product_attention(*wide, scale=0.3).transpose(1, 2)
    found = torch.autograd.grad(out, leaves, upstream)
    for a, b in zip(found, torch.autograd.grad(want, leaves, upstream), strict=True):
        torch.testing.assert_close(a, b)


def attend(q, packed, implementation="auto"):
    return packed_attention(q, packed, 0.25, implementation)


BAD = {
    "packed has shape": lambda: attend(None, packed(2, 9, 2, 2, 16)),
    "packed has dtype": lambda: attend(None, torch.zeros(2, 9, 3, 2, 16, dtype=torch.int32)),
    "packed has strides": lambda: attend(None, packed(2, 9, 3, 16, 2).transpose(3, 4)),
    "q has shape": lambda: attend(packed(1, 9, 2, 16), packed(2, 9, 2, 2, 16)),
    "q has dtype": lambda: attend(packed(2, 9, 2, 16).half(), packed(2, 9, 2, 2, 16)),
    "q is on device": lambda: attend(packed(2, 9, 2, 16).to("meta"), packed(2, 9, 2, 2, 16)),
    "unknown implementation 'quick'": lambda: attend(None, packed(2, 9, 3, 2, 16), "quick"),
    "'flash' cannot run.*runs on NVIDIA GPUs": lambda: attend(
        None, packed(2, 9, 3, 2, 16), "flash"
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    with pytest.raises(ValueError, match=f"attention: .*{message}"):
        BAD[message]()


def test_each_says_what_it_cannot_run():
    def obstacles(head_dim, dtype, device):
        return OP.obstacles(Case(device, dtype, VIT_G._replace(head_dim=head_dim)))

    on_cpu = obstacles(88, torch.float32, CPU)
    assert on_cpu["cpu_flash"] is None and on_cpu["math"] is None
    assert "NVIDIA" in on_cpu["flash"] and "NVIDIA" in on_cpu["efficient"]
    half = obstacles(88, torch.bfloat16, CUDA)
    assert half["flash"] is None and half["triton"] is None and "CPU" in half["cpu_flash"]
    assert half["flash_attn_2"] is None or "not installed" in half["flash_attn_2"]
    full = obstacles(88, torch.float32, CUDA)
    assert "float16" in full["flash"] and full["efficient"] is None
    odd = obstacles(90, torch.bfloat16, CUDA)
    assert "multiple of 8" in odd["flash"] and odd["triton"] is None
    assert "up to 128" in obstacles(160, torch.bfloat16, CUDA)["cudnn"]
    assert "to 256" in obstacles(264, torch.bfloat16, CUDA)["triton"]


class Clock:
    """Times the candidates of a race as `seconds` says; those without an entry fail."""

    def __init__(self, **seconds):
        self.seconds, self.asked = seconds, []

    def __call__(self, name, run, device):
        self.asked.append(name)
        if name not in self.seconds:
            raise torch.OutOfMemoryError("no memory left")
        return self.seconds[name]


@pytest.fixture
def clock(gpu_to_race_on, monkeypatch):
    clock = Clock(flash=2e-3, triton=1e-3, cudnn=3e-3)
    meta = torch.empty(1, 1, 3, 1, 1, device="meta")
    monkeypatch.setattr(torch, "randn", lambda *sizes, **options: meta)
    with timed_by(clock):
        yield clock


def test_choice_by_measurement_happens_once(clock, caplog):
    with caplog.at_level(logging.INFO, "eva_fast"):
        assert chosen(VIT_G, torch.bfloat16, CUDA) == "triton"
    assert "triton 1.000 ms" in caplog.text and "flash 2.000 ms" in caplog.text
    assert "efficient runs out of memory and is left out" in caplog.text
    assert "math" not in clock.asked and "cpu_flash" not in clock.asked
    assert clock.asked.count("efficient") == 1
    asked = len(clock.asked)
    assert chosen(VIT_G, torch.bfloat16, CUDA, BACKWARD) == "triton"
    assert chosen(VIT_G._replace(batch=64), torch.bfloat16, CUDA) == "triton"
    assert len(clock.asked) == asked
    chosen(VIT_G._replace(queries=105), torch.bfloat16, CUDA)
    assert len(clock.asked) > asked


def test_choice_is_kept_on_disk(clock):
    for queries in (257, 105):
        assert chosen(VIT_G._replace(queries=queries), torch.bfloat16, CUDA) == "triton"
    clock.seconds, clock.asked = {"flash": 1e-3, "triton": 2e-3}, []
    choose.forget_measured()  # as another process would start
    assert chosen(VIT_G, torch.bfloat16, CUDA) == "triton" and not clock.asked
    ((_, choices),) = choose.kept.everything()  # what `eva-fast doctor` shows
    timings = {"cudnn": 3.0, "flash": 2.0, "triton": 1.0}
    assert choices == {
        f"attention {queries}x257, 16 heads of 88, bfloat16": choose.Choice("triton", timings)
        for queries in (257, 105)
    }


def test_a_choice_without_any_timing_is_not_kept(clock):
    clock.seconds = {}
    assert chosen(VIT_G, torch.bfloat16, CUDA) == clock.asked[0]
    assert choose.kept.everything() == []


def test_nothing_is_measured_while_a_graph_is_captured(clock, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    first = next(n for n, why in OP.obstacles(Case(CUDA, torch.bfloat16, VIT_G)).items() if not why)
    assert chosen(VIT_G, torch.bfloat16, CUDA) == first and not clock.asked


def test_forced_choices():
    native = "native" if choose.can_run(OP.name, "native", "cpu") else "cpu_flash"
    assert chosen(VIT_G, torch.float32, CPU) == native
    choose.set_kernels("torch")
    assert chosen(VIT_G, torch.float32, CPU) == "cpu_flash"
    choose.force(OP.name, "math")
    assert chosen(VIT_G, torch.float32, CPU) == "math"
    assert chosen(VIT_G, torch.bfloat16, CUDA) == "math"
    choose.force(OP.name, "triton")  # float64 is PyTorch's, whatever is forced
    assert chosen(VIT_G, torch.float64, CPU) == "cpu_flash"
    choose.force(OP.name, "flash")  # where it cannot run, PyTorch chooses
    assert chosen(VIT_G, torch.float32, CPU) == "cpu_flash"


def test_plain_pytorch_races_what_comes_with_it(clock):
    choose.set_kernels("torch")
    assert chosen(VIT_G, torch.bfloat16, CUDA) == "flash"
    assert "triton" not in clock.asked and "flash" in clock.asked


def test_a_real_race_of_both_directions():
    shape = AttentionShape(1, 9, 17, 2, 16)
    runs = OP.trial.runs(Case(CPU, torch.float32, shape), ["cpu_flash", "math"])
    for run in runs.values():
        run()


@pytest.mark.parametrize("name", ["flash", "cudnn", "efficient", "math"])
def test_operators_of_pytorch_for_gpus(name):
    """Their signatures and layouts, on fake tensors: the operators themselves need a GPU."""
    with FakeTensorMode():
        qkv = torch.empty(2, 257, 3, 4, 88, dtype=torch.bfloat16, device="cuda")
        q, k, v = qkv.unbind(2)
        out, lse = OP.function(name)(q, k, v, 0.1)
        assert out.shape == (2, 257, 4, 88) and out.is_contiguous() and out.dtype == q.dtype
        assert lse.shape == (2, 4, 257) and lse.is_contiguous() and lse.dtype == torch.float32
        gradients = torch.empty_like(qkv).unbind(2)
        BACKWARD.function(name)(torch.empty_like(out), q, k, v, out, lse, 0.1, *gradients)


def flash_2():
    """A module with the calls of flash-attn 2.8, computing in plain PyTorch."""
    module = types.ModuleType("flash_attn.flash_attn_interface")

    def _flash_attn_forward(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
        alibi_slopes, return_softmax,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right) == (0.0, False, -1, -1)
        return *OP.function("math")(q, k, v, softmax_scale), None, None

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, dq, dk, dv, dropout_p, softmax_scale, causal,
        window_size_left, window_size_right, softcap, alibi_slopes, deterministic, rng_state=None,
    ):  # fmt: skip
        assert (dropout_p, causal, window_size_left, window_size_right) == (0.0, False, -1, -1)
        BACKWARD.function("math")(dout, q, k, v, out, softmax_lse, softmax_scale, dq, dk, dv, None)

    module._flash_attn_forward, module._flash_attn_backward = (
        _flash_attn_forward,
        _flash_attn_backward,
    )
    return {"flash_attn": types.ModuleType("flash_attn"), module.__name__: module}


def flash_3():
    """A module with the calls of flash-attn 3, as far as they are used."""
    module = types.ModuleType("flash_attn_interface")

    def _flash_attn_forward(q, k, v, k_new=None, v_new=None, softmax_scale=None, causal=False):
        return *OP.function("math")(q, k, v, softmax_scale), None, None

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, dq=None, dk=None,
        dv=None, softmax_scale=None, is_causal=False,
    ):  # fmt: skip
        BACKWARD.function("math")(dout, q, k, v, out, softmax_lse, softmax_scale, dq, dk, dv, None)

    module._flash_attn_forward, module._flash_attn_backward = (
        _flash_attn_forward,
        _flash_attn_backward,
    )
    return {module.__name__: module}


def xformers():
    """A module with xFormers' calls; its log-sum-exp is padded to a multiple of 32."""
    module = types.ModuleType("xformers.ops")

    def memory_efficient_attention_forward_requires_grad(query, key, value, scale=None):
        out, lse = OP.function("math")(query, key, value, scale)
        return out, torch.nn.functional.pad(lse, (0, -lse.shape[-1] % 32))

    def memory_efficient_attention_backward(grad, output, lse, query, key, value, scale=None):
        assert lse.shape[-1] % 32 == 0
        gradients = [torch.empty_like(t) for t in (query, key, value)]
        lse = lse[..., : query.shape[1]]
        BACKWARD.function("math")(grad, query, key, value, output, lse, scale, *gradients, None)
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
    out, lse = OP.function(name)(q, k, v, 0.25)
    want, want_lse = OP.function("math")(q, k, v, 0.25)
    torch.testing.assert_close((out, lse), (want, want_lse))
    assert lse.is_contiguous()
    dout = packed(2, 9, 2, 16, seed=1)
    found, expected = (torch.full_like(qkv, float("nan")) for _ in range(2))
    BACKWARD.function(name)(dout, q, k, v, out, lse, 0.25, *found.unbind(2))
    BACKWARD.function("math")(dout, q, k, v, out, lse, 0.25, *expected.unbind(2))
    torch.testing.assert_close(found, expected)


def test_one_operator_and_its_flops_on_meta_tensors():
    """2 products forward, 5 backward (the scores are computed again), of 2 FLOPs a multiply-add."""
    qkv = torch.empty(2, 257, 3, 4, 88, dtype=torch.bfloat16, device="meta")
    with FlopCounterMode(display=False) as counter:
        out, lse = packed_attention(None, qkv, 0.1)
        packed_attention_backward(out, None, qkv, out, lse, 0.1)
    product = 2 * 2 * 4 * 257 * 257 * 88
    counted = {str(op): flops for op, flops in counter.get_flop_counts()["Global"].items()}
    assert counted == {
        "eva_fast.packed_attention": 2 * product,
        "eva_fast.packed_attention_backward": 5 * product,
    }
    q, kv = qkv[:, :105, 0], qkv[:, :, 1:]
    with FlopCounterMode(display=False) as counter:
        packed_attention(q, kv, 0.1)
    assert counter.get_total_flops() == 2 * 2 * 2 * 4 * 105 * 257 * 88
