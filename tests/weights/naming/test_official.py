"""The official code's names, pre-trained and fine-tuned; its outputs are in tests/golden."""

import torch

from eva_fast.weights import infer_sizes, naming, read_student
from tests.weights.networks import STUDENT, same, student


def test_golden_names(eva_micro):
    """The names that the official code gives its parameters are the table's, all of them."""
    tensors, _ = eva_micro
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    assert naming.find(state, naming.EVA) == (naming.official.EVA, "")
    same(naming.official.EVA.write(state), state)


def test_fine_tuned(tmp_path):
    """As the official fine-tuning saves it: a classifier after `fc_norm`, no head of pre-training."""
    state = student().state_dict()
    tuned = naming.official.FINE_TUNED.write(state)
    tuned |= {"head.weight": torch.ones(5, 64), "head.bias": torch.ones(5)}
    assert "fc_norm.weight" in tuned and "norm.weight" not in tuned
    torch.save({"model": tuned, "epoch": 1}, tmp_path / "tuned.pt")
    found, metadata = read_student(tmp_path / "tuned.pt")
    same(found, {k: v for k, v in state.items() if not k.startswith(("mask_token", "lm_head"))})
    sizes = infer_sizes(found, {**metadata, "num_heads": 4})
    assert sizes.predict_dim == 1 and sizes.embed_dim == STUDENT["embed_dim"]
