"""EVA-01's own blocks, accelerated, against outputs of the official code and against themselves."""

import copy

import pytest
import torch
from torch import nn

import eva_fast
from eva_fast.baselines.official import OfficialViT
from eva_fast.errors import UsageError
from eva_fast.model.sizes import ModelSizes
from tests.acceleration.comparing import assert_same, pair
from tests.acceleration.modeling_finetune import Block, RelativePositionBias
from tests.conftest import GOLDEN
from tests.golden import largest, read, relative
from tests.golden.eva import SIZES


def test_outputs_and_gradients_of_the_official_code():
    tensors, meta = read(GOLDEN / "eva_micro.safetensors")
    sizes = ModelSizes(**{k: int(meta[k]) for k in SIZES})
    model = OfficialViT(sizes)
    model.blocks = nn.ModuleList(
        Block(sizes.embed_dim, sizes.num_heads, sizes.mlp_hidden) for _ in range(sizes.depth)
    )
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    eva_fast.accelerate(model)
    assert "attention and MLP fused" in str(model.eva_fast_report)
    images, mask = tensors["image"], tensors["mask"].flatten(1)
    assert largest(model.forward_features(images, mask), tensors["features"]) <= 1e-5
    assert largest(model(images, mask), tensors["prediction"]) <= 1e-5
    model.loss(tensors["target"], images, mask).backward()
    for name, parameter in model.named_parameters():
        assert relative(parameter.grad, tensors[f"grad.{name}"]) <= 1e-4, name


TOKENS = 5


@pytest.mark.parametrize(
    "options",
    [
        {"init_values": 0.3, "drop_path": 0.4},
        {"qkv_bias": False},
        {"tokens": TOKENS},
        {"tokens": TOKENS, "decoupled": True, "init_values": 0.3},
    ],
    ids=["LayerScale", "no biases", "own positions", "decoupled positions"],
)
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared positions"])
def test_a_block(options, shared):
    parts = {"block": Block(32, 2, 48, **options), "positions": RelativePositionBias(TOKENS, 2)}
    plain, fused = pair(nn.ModuleDict(parts))
    x = torch.randn(3, TOKENS, 32, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 0]] * 3)
    for training in (False, True):
        plain.train(training), fused.train(training)
        assert_same(plain, fused, lambda m: m["block"](x, m["positions"]() if shared else None))
        assert_same(plain, fused, lambda m: m["block"](x, attn_mask=mask))


def test_half_precision():
    _, fused = pair(nn.ModuleList([Block(32, 2, 48, init_values=0.3)]))
    x = torch.randn(2, TOKENS, 32)
    exact = fused[0](x)
    out = copy.deepcopy(fused).to(torch.bfloat16)[0](x.to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).abs().max() <= 0.05 * exact.abs().max()


def test_post_norm_is_refused():
    with pytest.raises(UsageError, match=r"modeling_finetune.Block\) .* normalises behind"):
        eva_fast.accelerate(nn.ModuleList([Block(32, 2, 48, postnorm=True)]))
