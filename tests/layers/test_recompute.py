"""Activation checkpointing: the same numbers from fewer kept bytes."""

import pytest
import torch

from eva_fast.layers import keep_copies
from eva_fast.layers.recompute import spread
from tests.layers.test_block import batch, step, student


def saved_bytes(model):
    """Bytes of the storages that autograd holds at the end of the forward, parameters and kept copies
    left out."""
    held = {}
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            held[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        loss = model.loss(*batch())
    found = sum(s.nbytes() for s in held.values())
    loss.backward()
    return found


@pytest.mark.parametrize("kernels", ["auto", "torch"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_numbers_stay_to_the_last_bit(kernels, dtype, share):
    """With drop-path, whose random numbers must be those of the first pass, and kept copies."""
    model = student(0.4, kernels=kernels, compute_dtype=dtype)
    assert bool(keep_copies(model, dtype)) == (kernels == "auto")
    expected = step(model)
    after = torch.rand(1)
    model.set_grad_checkpointing(share=share)
    found = step(model)
    assert torch.equal(torch.rand(1), after)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kernels", ["auto", "torch"])
def test_fewer_bytes_are_kept(kernels):
    model = student(0.4, kernels=kernels)
    kept = [saved_bytes(model)]
    for share in (0.25, 0.5, 1.0):
        model.set_grad_checkpointing(share=share)
        kept.append(saved_bytes(model))
    assert kept == sorted(kept, reverse=True) and kept[-1] < kept[0] / 2
    model.set_grad_checkpointing(False)
    assert saved_bytes(model) == kept[0]


def test_nothing_is_run_twice_where_there_is_no_backward():
    model, calls = student(), []
    model.set_grad_checkpointing()
    for block in model.blocks:
        block.attn.register_forward_hook(lambda *_: calls.append(1))
    images, mask, _ = batch()
    with torch.no_grad():
        model(images, mask)
    assert len(calls) == 4
    step(model)
    assert len(calls) == 4 + 2 * 4


def test_which_blocks():
    assert spread(12, 1.0) == list(range(12))
    assert spread(12, 0.5) == [0, 2, 4, 6, 8, 10]
    assert spread(4, 0.75) == [0, 1, 2]
    assert spread(3, 0.01) == [0]
    with pytest.raises(ValueError, match="share"):
        student().set_grad_checkpointing(share=0.0)
