"""Parameter groups and twenty whole steps against the official code."""

import pytest
import torch

import eva_fast
from eva_fast.train import decay_groups, make_optimizer
from eva_fast.train.guard import Guard
from eva_fast.train.optimizer import Ema, gradient_norm

SIZES = ("img_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_hidden", "predict_dim")


@pytest.fixture(params=["torch", "auto"])
def micro(eva_micro, request):
    tensors, meta = eva_micro
    model = eva_fast.create_model(**{k: int(meta[k]) for k in SIZES}, kernels=request.param)
    model.load_official({k[6:]: v for k, v in tensors.items() if k.startswith("param.")})
    return model, tensors


def test_decay_groups_are_the_official_ones(micro, eva_micro_groups):
    decay, no_decay = decay_groups(micro[0])
    assert set(decay) == set(eva_micro_groups["decay"])
    assert set(no_decay) == set(eva_micro_groups["no_decay"])


def test_twenty_steps_of_official_code(micro):
    model, t = micro
    optimizer, guard = make_optimizer(model), Guard(torch.device("cpu"), scaled=False)
    for rate, expected_loss, expected_norm in zip(t["lr"], t["losses"], t["grad_norms"]):
        for group in optimizer.param_groups:
            group["lr"] = rate.item()
        optimizer.zero_grad()
        loss = model.loss(t["image"], t["mask"], t["target"])
        loss.backward()
        norm = gradient_norm(model.parameters())
        guard.step(optimizer, loss, norm, 3.0)
        assert loss.item() == pytest.approx(expected_loss.item(), abs=1e-4)
        assert norm.item() == pytest.approx(expected_norm.item(), rel=1e-4)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, t[f"after.{name}"], rtol=0, atol=1e-4, msg=name)


def test_clip_and_decay_equal_torch_written_out(micro):
    """A clip that bites, against clip_grad_norm_ and the unfused AdamW."""
    model, t = micro
    twin = eva_fast.create_model(**{k: getattr(model.sizes, k) for k in SIZES})
    twin.load_official(model.state_dict())
    ours, guard = make_optimizer(model, lr=1e-2), Guard(torch.device("cpu"), scaled=False)
    decay, no_decay = decay_groups(twin)
    p = dict(twin.named_parameters())
    groups = [
        {"params": [p[n] for n in decay], "weight_decay": 0.05},
        {"params": [p[n] for n in no_decay], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, foreach=False)
    for _ in range(5):
        for m, optimizer in ((model, ours), (twin, plain)):
            optimizer.zero_grad()
            loss = m.loss(t["image"], t["mask"], t["target"])
            loss.backward()
            if m is model:
                guard.step(optimizer, loss, gradient_norm(m.parameters()), 0.05)
            else:
                torch.nn.utils.clip_grad_norm_(m.parameters(), 0.05)
                optimizer.step()
    for (name, a), b in zip(model.named_parameters(), twin.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


def test_ema_follows_its_definition(micro):
    model, _ = micro
    ema = Ema(model, 0.9)
    before = {n: w.clone() for n, w in ema.weights.items()}
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ema.update(torch.tensor(True))
    for name, p in model.named_parameters():
        torch.testing.assert_close(ema.weights[name], 0.9 * before[name] + 0.1 * p.detach())
    before = {n: w.clone() for n, w in ema.weights.items()}
    ema.update(torch.tensor(False))  # a skipped step
    assert all(torch.equal(ema.weights[n], before[n]) for n in before)


def test_modules_within_a_module_name_what_does_not_decay(micro):
    """Names are those within the module that says `no_weight_decay`, as timm has it."""
    outer = torch.nn.ModuleDict({"student": micro[0], "projector": torch.nn.Linear(4, 3)})
    decay, no_decay = decay_groups(outer)
    assert {"student.mask_token", "projector.weight"} <= set(decay)
    assert {"student.pos_embed", "student.cls_token", "projector.bias"} <= set(no_decay)
