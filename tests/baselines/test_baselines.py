"""Both plain formulations against outputs of the official code: forward, gradients, 20 steps."""

import pytest
import torch

from eva_fast.baselines import OfficialViT, TunedViT
from eva_fast.baselines.training import make_optimizer, train_step
from eva_fast.model import ModelSizes, create_model

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden", "predict_dim")


@pytest.fixture(params=[OfficialViT, TunedViT], ids=["official", "tuned"])
def micro(request, eva_micro):
    tensors, meta = eva_micro
    model = request.param(ModelSizes(**{k: int(meta[k]) for k in SIZES}))
    model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model, tensors


def test_outputs_and_gradients(micro):
    model, t = micro
    inputs = model.inputs(t["mask"])
    features = model.forward_features(t["image"], t["mask"])
    torch.testing.assert_close(features, t["features"], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(t["image"], *inputs), t["prediction"], rtol=0, atol=1e-5)
    loss = model.loss(t["target"], t["image"], *inputs)
    torch.testing.assert_close(loss.reshape(1), t["loss"], rtol=0, atol=1e-5)
    loss.backward()
    for name, p in model.named_parameters():
        expected = t[f"grad.{name}"]
        error = (p.grad - expected).norm() / expected.norm().clamp_min(1e-12)
        assert error < 1e-4, f"{name}: relative error {error:.2e}"


def test_twenty_steps(micro):
    model, t = micro
    optimizer = make_optimizer(model)
    inputs = model.inputs(t["mask"])
    for step in range(20):
        for group in optimizer.param_groups:
            group["lr"] = float(t["lr"][step])
        loss, norm = train_step(model, optimizer, t["image"], inputs, t["target"])
        assert abs(loss.item() - t["losses"][step].item()) < 1e-4, f"loss of step {step}"
        assert abs(norm.item() / t["grad_norms"][step].item() - 1) < 1e-3, f"norm of step {step}"


def test_decay_groups_match_the_official_ones(micro, eva_micro_groups):
    model, _ = micro
    names = {p: n for n, p in model.named_parameters()}
    decayed = make_optimizer(model).param_groups[0]
    assert decayed["weight_decay"] == 0.05
    assert {names[p] for p in decayed["params"]} == set(eva_micro_groups["decay"])


def test_state_dict_is_the_students():
    sizes = dict(img_size=32, patch_size=16, embed_dim=64, depth=2, num_heads=2, mlp_hidden=96)
    student = create_model(**sizes, predict_dim=24)
    shapes = {k: v.shape for k, v in student.state_dict().items()}
    for kind in (OfficialViT, TunedViT):
        plain = kind(student.sizes)
        assert {k: v.shape for k, v in plain.state_dict().items()} == shapes


def test_drop_path_zeroes_or_rescales_whole_samples():
    torch.manual_seed(0)
    from eva_fast.baselines.official import drop_path

    x = torch.ones(1000, 2, 3)
    y = drop_path(x, 0.25, training=True)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert (y == y[:, :1, :1]).all()
    assert 0.7 < (y[:, 0, 0] > 0).float().mean() < 0.8
    assert drop_path(x, 0.25, training=False) is x
