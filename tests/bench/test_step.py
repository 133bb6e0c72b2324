"""The variants of the whole step: the same numbers, float32 weights in all, other libraries' calls."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from bench import libraries, step
from bench.harness import check_agreement
from bench.kit import Kit
from bench.shapes import check_shape
from eva_fast.baselines import training


def subject(dtype):
    return step.subject(check_shape("cpu", dtype), "step", Kit("step", False, True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_variants_agree(dtype):
    case = subject(dtype)
    check_agreement(case)
    half = {"tuned half"} if dtype == torch.bfloat16 else set()
    assert {"reference", "tuned", "compile blocks", "compile", "eva_fast"} | half <= set(
        case.variants
    )


@pytest.mark.parametrize("name", ["reference", "tuned", "tuned half"])
def test_weights_and_moments_are_float32_as_ours_are(name, monkeypatch):
    """An update far below bfloat16's resolution of the weights is not lost."""
    made = []
    kept = training.make_optimizer
    monkeypatch.setattr(
        training, "make_optimizer", lambda *a, **k: made.append(kept(*a, **k)) or made[-1]
    )
    variant = step.make(name, check_shape("cpu", torch.bfloat16), Kit("step", False, True))
    (optimizer,) = made
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
        assert all(p.dtype == torch.float32 for p in group["params"])
    first = optimizer.param_groups[0]["params"][3]
    before = first.detach().clone()
    variant.call()
    assert (first != before).float().mean() > 0.9
    assert (first.bfloat16() == before.bfloat16()).float().mean() > 0.5


def stubs():
    """The libraries' calls, computing in plain PyTorch."""
    liger, flash, apex = (
        types.ModuleType(n)
        for n in ("liger_kernel.ops.layer_norm", "flash_attn", "apex.optimizers")
    )
    called = []

    class LigerLayerNormFunction:
        @staticmethod
        def apply(x, weight, bias, eps):
            called.append("liger")
            return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)

    def flash_attn_qkvpacked_func(qkv, softmax_scale=None):
        called.append("flash-attn")
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return F.scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)

    def fused_adam(params, lr, betas, eps, adam_w_mode):
        called.append("apex")
        assert adam_w_mode
        return torch.optim.AdamW(params, lr=lr, betas=betas, eps=eps)

    liger.LigerLayerNormFunction = LigerLayerNormFunction
    flash.flash_attn_qkvpacked_func = flash_attn_qkvpacked_func
    apex.FusedAdam = fused_adam
    names = ("liger_kernel", "liger_kernel.ops", "apex")
    modules = {name: types.ModuleType(name) for name in names}
    return called, modules | {m.__name__: m for m in (liger, flash, apex)}


def test_libraries_take_the_parts_they_bring(monkeypatch):
    called, modules = stubs()
    for name, module in modules.items():
        module.__spec__ = types.SimpleNamespace(name=name)
        monkeypatch.setitem(sys.modules, name, module)
    assert {part: package for part, (package, _) in libraries.found().items()} == {
        "norm": "liger-kernel", "attention": "flash-attn", "optimizer": "apex",
    }  # fmt: skip
    case = subject(torch.bfloat16)
    check_agreement(case)
    assert set(called) == {"liger", "flash-attn", "apex"}
    case.variants["libraries"].call()


def test_without_libraries_the_variant_is_missing(monkeypatch):
    monkeypatch.setattr(libraries, "KNOWN", {"norm": (("other", "no_such_module", None),)})
    case = subject(torch.bfloat16)
    assert case.missing["libraries"] == "none of other is installed"
    assert "libraries" not in case.variants
