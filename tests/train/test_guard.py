"""Steps that are not finite change nothing; ten in a row stop the run; fp16's loss scale moves."""

import pytest
import torch

from eva_fast.train import make_optimizer
from eva_fast.train.guard import Guard, NonFiniteError
from eva_fast.train.optimizer import gradient_norm


def one_step(model, optimizer, guard, poison=None, clip=3.0):
    x = torch.ones(2, 4) if poison is None else torch.full((2, 4), poison)
    optimizer.zero_grad()
    loss = model(x).square().mean()
    guard.scale(loss).backward()
    norm = guard.unscale(gradient_norm(model.parameters()))
    guard.step(optimizer, loss.detach(), norm, clip)


@pytest.fixture
def parts():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 3)
    return model, make_optimizer(model)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_bad_step_changes_no_weight_and_no_moment(parts, poison):
    model, optimizer = parts
    guard = Guard(torch.device("cpu"), scaled=False)
    one_step(model, optimizer, guard)
    weights = [p.detach().clone() for p in model.parameters()]
    moments = [optimizer.state[p]["exp_avg"].clone() for p in model.parameters()]
    counts = [optimizer.state[p]["step"].item() for p in model.parameters()]
    one_step(model, optimizer, guard, poison)
    for p, w, m, c in zip(model.parameters(), weights, moments, counts):
        assert torch.equal(p, w)
        assert torch.equal(optimizer.state[p]["exp_avg"], m)
        assert optimizer.state[p]["step"].item() == c
    assert guard.check() == 1


def test_ten_in_a_row_stop_the_run_nine_do_not(parts):
    model, optimizer = parts
    guard = Guard(torch.device("cpu"), scaled=False)
    for _ in range(9):
        one_step(model, optimizer, guard, float("nan"))
    one_step(model, optimizer, guard)
    assert guard.check() == 9
    for _ in range(10):
        one_step(model, optimizer, guard, float("nan"))
    one_step(model, optimizer, guard)  # recovering does not hide the ten before it
    with pytest.raises(NonFiniteError, match="10 steps in a row"):
        guard.check()
    one_step(model, optimizer, guard)  # a run that goes on is judged anew
    assert guard.check() == 19


def test_a_streak_across_a_log_point_counts_as_one(parts):
    model, optimizer = parts
    guard = Guard(torch.device("cpu"), scaled=False)
    for _ in range(6):
        one_step(model, optimizer, guard, float("nan"))
    guard.check()
    for _ in range(4):
        one_step(model, optimizer, guard, float("nan"))
    with pytest.raises(NonFiniteError):
        guard.check()


def test_loss_scale_halves_on_overflow_and_doubles_after_steady_steps(parts, monkeypatch):
    monkeypatch.setattr("eva_fast.train.guard.GROWTH_STEPS", 3)
    model, optimizer = parts
    guard = Guard(torch.device("cpu"), scaled=True)
    start = guard.state[3].item()
    one_step(model, optimizer, guard, float("inf"))
    assert guard.state[3].item() == start / 2
    for _ in range(3):
        one_step(model, optimizer, guard)
    assert guard.state[3].item() == start


def test_scaled_steps_equal_unscaled_ones():
    weights = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        optimizer, guard = make_optimizer(model), Guard(torch.device("cpu"), scaled=scaled)
        for _ in range(5):
            one_step(model, optimizer, guard, clip=0.1)
        weights.append(model.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("clip", [0.0, 0.1, 1e6])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled loss"])
def test_gradients_are_clipped_as_torch_clips_them(parts, clip, scaled):
    """The factor that the optimiser gets, loss scale included."""
    model, _ = parts
    guard = Guard(torch.device("cpu"), scaled=scaled)
    taken = []

    class Optimizer:
        def step(self, grad_scale):
            taken.extend(p.grad * grad_scale for p in model.parameters())

    loss = model(torch.ones(2, 4)).square().mean()
    guard.scale(loss).backward()
    norm = guard.unscale(gradient_norm(model.parameters()))
    assert guard.step(Optimizer(), loss.detach(), norm, clip)
    model.zero_grad()
    model(torch.ones(2, 4)).square().mean().backward()
    expected = torch.nn.utils.clip_grad_norm_(model.parameters(), clip or float("inf"))
    torch.testing.assert_close(norm, expected)
    for found, p in zip(taken, model.parameters(), strict=True):
        torch.testing.assert_close(found, p.grad)
