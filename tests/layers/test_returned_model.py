"""The model that a 16-bit run returns is anybody's: it follows whoever changes its weights."""

import copy

import pytest
import torch

import eva_fast

BF16 = torch.bfloat16
TINY = dict(
    model="eva_ti_patch8_32", embed_dim=48, depth=2, num_heads=3, mlp_hidden=70, batch_size=8,
    workers=0, device="cpu", precision="bf16", progress=False, steps=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return eva_fast.pretrain(out=tmp_path_factory.mktemp("run") / "run", **TINY).model


def features(model, images):
    with torch.no_grad():
        return model.forward_features(images)


def fresh(model, state):
    twin = eva_fast.model.EvaViT(model.sizes, compute_dtype=BF16)
    twin.load_state_dict(state)
    return twin.eval()


def test_weights_loaded_into_the_model_of_a_bf16_run_give_their_features(trained):
    model = copy.deepcopy(trained)
    state = eva_fast.model.EvaViT(model.sizes).state_dict()
    images = torch.randn(2, 3, 32, 32)
    trained.load_state_dict(state)
    try:
        assert torch.equal(features(trained, images), features(fresh(model, state), images))
    finally:
        trained.load_state_dict(model.state_dict())


@pytest.mark.parametrize("options", [{}, {"fused": True}], ids=["default", "fused"])
def test_the_model_of_a_bf16_run_goes_on_with_torchs_optimiser(trained, options):
    torch.manual_seed(0)
    state = copy.deepcopy(trained.state_dict())
    images = torch.randn(4, 3, 32, 32)
    mask = torch.rand(4, 16).argsort(1)[:, :6].sort(1).values.int()
    target = torch.randn(24, trained.sizes.predict_dim)
    curves = []
    for model in (trained, fresh(trained, state)):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, **options)
        losses = []
        for _ in range(4):
            loss = model.loss(images, mask, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    trained.load_state_dict(state)
    assert curves[0] == curves[1]
    assert curves[0][-1] < curves[0][0] - 0.1
