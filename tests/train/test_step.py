"""The training step by itself: against PyTorch's own parts, split, poisoned and scaled."""

import pytest
import torch

from eva_fast.train import checkpoint
from eva_fast.train.checkpoint_writer import Writer
from tests.train.fakes import Counting, FakeLoader, Squares, ask, batch, make_step, snapshot


def run(step, numbers=range(4), rate=1e-2):
    """Outcomes of steps on the batches of these numbers; copies, since the next step writes them."""
    return [[t.clone() for t in step(batch(n), rate)] for n in numbers]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_it_is_what_torch_s_parts_do_one_after_the_other():
    step, twin = make_step(clip_grad=0.05), Counting()
    groups = [
        {"params": [twin.linear.weight], "weight_decay": 0.05},
        {"params": [twin.linear.bias], "weight_decay": 0.0},
    ]
    plain = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.98), eps=1e-6)
    for number, (loss, norm, applied) in enumerate(run(step)):
        plain.zero_grad()
        expected, _ = Squares().loss(twin, batch(number), ask(batch(number)))
        expected.backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.05)
        plain.step()
        assert applied
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-6, atol=0)
        torch.testing.assert_close(norm, expected_norm, rtol=1e-6, atol=0)
    for a, b in zip(step.state.module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_make_the_step_of_the_whole_batch(parts):
    whole, split = make_step(), make_step(accumulate=parts)
    for a, b in zip(run(whole), run(split), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert len(split.objective.flags) == 4  # one update a step, however many micro-batches
    torch.testing.assert_close(snapshot(split.state), snapshot(whole.state), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["first", "last"])
def test_a_step_that_is_not_finite_changes_nothing(poison, place):
    bad = [False]

    def poisoned(part):
        target = ask(part)
        if bad[0] and bool((part.ids == (0 if place == "first" else 3)).any()):
            target = target * poison
        return target

    step = make_step(ema=0.9, accumulate=2, ask=poisoned)
    run(step)
    before, sums = snapshot(step.state), step.state.sums.tensor.clone()
    bad[0] = True
    ((_, _, applied),) = run(step, [7])
    assert not applied and not step.objective.flags[-1]
    assert equal(snapshot(step.state), before)
    assert torch.equal(step.state.sums.tensor, sums)
    assert step.state.guard.check() == 1
    bad[0] = False
    ((_, _, applied),) = run(step, [8])
    assert applied and not equal(snapshot(step.state), before)


def test_an_overflow_of_the_scaled_loss_is_skipped_and_the_scale_halved():
    step = make_step(scaled=True, ask=lambda part: ask(part) * 3e17)
    before, scale = snapshot(step.state), step.state.guard.state[3].item()
    ((loss, norm, applied),) = run(step, [1])
    assert loss.isfinite() and not norm.isfinite() and not applied
    assert equal(snapshot(step.state)[:3], before[:3])
    assert step.state.guard.state[3].item() == scale / 2


def test_a_scaled_loss_gives_the_same_step():
    plain, scaled = make_step(ema=0.9), make_step(ema=0.9, scaled=True)
    for a, b in zip(run(plain), run(scaled), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    torch.testing.assert_close(snapshot(scaled.state), snapshot(plain.state), rtol=1e-6, atol=1e-8)


def test_the_average_follows_the_weights():
    step = make_step(ema=0.75)
    average = step.state.module.linear.weight.detach().clone()
    for number in range(3):
        run(step, [number])
        average += 0.25 * (step.state.module.linear.weight.detach() - average)
    torch.testing.assert_close(step.state.ema.weights["linear.weight"], average)


def test_sums_are_means_of_the_steps_since_they_were_taken():
    step = make_step(accumulate=2)
    outcomes = run(step)
    means = step.state.sums.take()
    assert list(means) == ["loss", "grad_norm", "largest", "baseline_loss"]
    assert means["loss"] == pytest.approx(sum(o[0].item() for o in outcomes) / 4)
    assert means["grad_norm"] == pytest.approx(sum(o[1].item() for o in outcomes) / 4)
    assert means["largest"] > 0
    assert step.state.sums.take() == dict.fromkeys(means)  # none since then


def test_what_a_captured_step_writes_stays_where_it_is():
    """A CUDA graph writes to the addresses it was captured with."""
    step = make_step(ema=0.9, scaled=True, spike=7.0)
    run(step)
    state = step.state

    def addresses():
        held = [*state.module.state_dict().values(), *state.ema.weights.values()]
        held += [*state.guard.tensors().values(), state.sums.tensor, step(batch(5), 1e-2).loss]
        held += [v for p in state.module.parameters() for v in state.optimizer.state[p].values()]
        return [t.data_ptr() for t in held]

    assert addresses() == addresses()


def test_the_rate_of_a_step_is_its_own():
    step = make_step()
    weights = [p.detach().clone() for p in step.state.module.parameters()]
    run(step, [1], rate=0.0)
    assert equal(step.state.module.parameters(), weights) and step.state.step == 1
    run(step, [1], rate=1e-2)
    assert not equal(step.state.module.parameters(), weights)


def test_an_optimiser_of_other_parameters_is_refused():
    step = make_step()
    step.state.module = Counting()
    with pytest.raises(ValueError, match="the parameters of the module"):
        type(step)(step.state, Squares(), ask, clip_grad=1.0)


def test_a_metric_that_was_promised_must_come():
    class Silent(Squares):
        def loss(self, module, batch, target):
            return super().loss(module, batch, target)[0], {}

    with pytest.raises(KeyError, match="largest"):
        run(make_step(Silent()))


class Idle(Squares):
    """With a parameter that no loss reaches."""

    def build(self, setting, teacher):
        module = super().build(setting, teacher)
        module.idle = torch.nn.Linear(3, 2)
        return module


@pytest.mark.parametrize("objective", [Squares, Idle])
def test_saved_and_restored_it_goes_on_to_the_same_bits(tmp_path, objective):
    def fresh():
        return make_step(objective(), loader=FakeLoader(), ema=0.9, spike=7.0, accumulate=2)

    whole, first, second = fresh(), fresh(), fresh()
    run(whole, range(6))
    run(first, range(3))
    with Writer(tmp_path, keep=1) as writer:
        first.state.save(writer, options={})
    folder = checkpoint.newest(tmp_path)
    torch.manual_seed(5)
    second.state.restore(folder)
    assert second.state.step == 3
    run(second, range(3, 6))
    assert equal(snapshot(second.state), snapshot(whole.state))
    assert torch.equal(second.state.sums.tensor, whole.state.sums.tensor)
    guards = [s.state.guard.tensors().values() for s in (second, whole)]
    assert equal(*guards)
