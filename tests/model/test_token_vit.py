"""The student of tokens. Its numbers are `mim.*` of tests/golden/vqkd_micro.safetensors."""

import pytest
import torch
import torch.nn.functional as F

from eva_fast.model import ModelSizes
from eva_fast.model.token_vit import TokenViT

SIZES = ModelSizes(
    img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, mlp_hidden=64, predict_dim=20
)
IMAGES = torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8)
MASK = torch.tensor([[0, 3, 9], [1, 2, 15], [4, 5, 6]], dtype=torch.int32)


def test_published_size():
    base = ModelSizes(
        img_size=224, patch_size=16, embed_dim=768, depth=12, num_heads=12, mlp_hidden=3072,
        predict_dim=8192,
    )  # fmt: skip
    with torch.device("meta"):
        student = TokenViT(base)
    assert sum(p.numel() for p in student.parameters()) == 106_143_056
    assert student.early == 9


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_trimmed_blocks_give_what_whole_ones_give(kernels):
    student = TokenViT(SIZES, kernels=kernels)
    rows = (MASK.long() + 1)[..., None].expand(-1, -1, SIZES.embed_dim)
    logits, told = student.logits(IMAGES, MASK)
    whole = student.forward_features(IMAGES, MASK)
    torch.testing.assert_close(logits, student.lm_head(whole.gather(1, rows)).flatten(0, 1))
    bias = student.rel_pos_bias()
    early = student.run_blocks(student.embed(IMAGES, MASK), student.blocks[: student.early], bias)
    early = early if isinstance(early, torch.Tensor) else early.added()
    last = student.tokens(IMAGES, MASK)
    last = last if isinstance(last, torch.Tensor) else last.added()
    branch = torch.cat((last[:, :1], early[:, 1:]), 1)
    out = student.norm(student.run_blocks(branch, student.cls_pt_layers, bias))
    torch.testing.assert_close(told, student.lm_head(out.gather(1, rows)).flatten(0, 1))


@pytest.mark.parametrize("kernels", ["torch", "auto"])
def test_losses(kernels):
    student, codes = TokenViT(SIZES, kernels=kernels), torch.randint(20, (9,))
    logits, told = student.logits(IMAGES, MASK)
    codes[:4] = logits[:4].argmax(1)
    found = student.losses(IMAGES, MASK, codes)
    torch.testing.assert_close(found.patches, F.cross_entropy(logits, codes))
    torch.testing.assert_close(found.branch, F.cross_entropy(told, codes))
    torch.testing.assert_close(found.total(), found.patches + found.branch)
    assert found.right == (logits.argmax(1) == codes).float().mean()


def test_without_the_branch_it_is_the_first_beit():
    student = TokenViT(SIZES, branch_depth=0)
    found = student.losses(IMAGES, MASK, torch.randint(20, (9,)))
    assert found.branch is None and found.total() is found.patches
    assert not [name for name, _ in student.named_parameters() if "cls_pt" in name]


def test_initial_values():
    """The main blocks are normal, cut at one deviation; the branch keeps PyTorch's own, biases too."""
    torch.manual_seed(0)
    student = TokenViT(SIZES)
    for i, block in enumerate(student.blocks, 1):
        assert block.attn.qkv.weight.abs().max() <= 0.02
        assert block.mlp.fc2.weight.abs().max() <= 0.02 / (2 * i) ** 0.5
        assert not block.mlp.fc1.bias.any()
    for i, block in enumerate(student.cls_pt_layers, student.early + 1):
        uniform = 32**-0.5
        assert 0.9 * uniform < block.attn.qkv.weight.abs().max() <= uniform
        assert block.attn.proj.weight.abs().max() <= uniform / (2 * i) ** 0.5
        assert block.mlp.fc1.bias.abs().max() > 0.1 * uniform
    assert student.lm_head.weight.abs().max() <= 0.02
    assert (student.cls_pt_layers[0].gamma_1 == 0.1).all()


def test_a_branch_that_reads_after_the_last_block():
    with pytest.raises(ValueError, match="blocks 1 to 3 of 4, not after 4"):
        TokenViT(SIZES, early=4)
