"""Against the rules written out in Python's own numbers, step by step."""

import math

import numpy as np
import pytest
import torch

from eva_fast import ops
from tests.ops.helpers import opcheck

nan, inf = math.nan, math.inf
pytestmark = pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow")


class Plain:
    """What a guard keeps, as numbers of the host."""

    def __init__(self, scale, spikes):
        self.skipped = self.streak = self.longest = self.steady = 0
        self.scale = scale
        self.spikes = spikes
        self.steps = self.number = 0
        self.mean = self.square = 0.0
        self.last = [0.0, 0.0, 0.0]

    def step(self, loss, norm, clip, growth_steps, limit, spike_steps):
        finite = math.isfinite(loss) and math.isfinite(norm)
        applied = finite
        if self.spikes and finite:
            deviation = math.sqrt(max(self.square - self.mean**2, 0.0) + (self.mean / 1000) ** 2)
            if self.steps >= spike_steps and loss >= self.mean + limit * deviation:
                applied = False
                self.number, self.last = self.number + 1, [loss, self.mean, self.square]
            else:
                self.steps += 1
                share = 1 / min(self.steps, spike_steps)
                self.mean += share * (loss - self.mean)
                self.square += share * (loss**2 - self.square)
        factor = (min(clip / (norm + 1e-6), 1.0) if clip else 1.0) / self.scale if applied else nan
        self.streak = 0 if applied else self.streak + 1
        self.skipped, self.longest = self.skipped + (not applied), max(self.longest, self.streak)
        if growth_steps:
            self.steady = self.steady + 1 if finite else 0
            if not finite:
                self.scale = max(self.scale / 2, 1.0)
            elif self.steady >= growth_steps:
                self.steady, self.scale = 0, min(self.scale * 2, 2.0**24)
        return applied, factor

    @property
    def state(self):
        return [self.skipped, self.streak, self.longest, self.scale, self.steady]

    @property
    def statistic(self):
        return [self.steps, self.number, self.mean, self.square, *self.last]


def state_of(scale=1.0):
    return torch.tensor([0.0, 0.0, 0.0, scale, 0.0])


def statistic():
    return torch.zeros(7, dtype=torch.float64)


QUIET = np.random.default_rng(0).normal(3.0, 0.5, 14).tolist()
TROUBLED = [*QUIET[:6], nan, 40.0, 41.0, QUIET[6], inf, -inf, 2.5, 50.0, *QUIET[7:]]
CASES = {
    "as a run has it": (TROUBLED, 3.0, 0, 5.0, 1.0),
    "a scaled loss": (TROUBLED, 0.5, 3, 5.0, 2.0**16),
    "without a limit": (TROUBLED, 0.5, 0, None, 1.0),
    "without clipping": (TROUBLED, 0.0, 3, None, 4.0),
    "the least scale": ([nan] * 3 + QUIET, 1.0, 6, None, 2.0),
    "the largest scale": (QUIET, 1.0, 1, None, 2.0**23),
}


@pytest.mark.parametrize("case", CASES)
def test_against_numbers_of_the_host(kernels, case):
    losses, clip, growth_steps, limit, scale = CASES[case]
    losses = torch.tensor(losses)
    norms = torch.rand(len(losses)) * 2
    norms[4] = nan
    norms[0] = 0
    state, spikes = state_of(scale), None if limit is None else statistic()
    plain = Plain(scale, limit is not None)
    settings = clip, growth_steps, limit or 0.0, 4
    places = state.data_ptr(), None if spikes is None else spikes.data_ptr()
    for loss, norm in zip(losses, norms, strict=True):
        expected, exact = plain.step(loss.item(), norm.item(), *settings)
        applied, factor = ops.guard_step(
            loss, norm, state, clip, growth_steps, spikes, limit or 0.0, 4
        )
        assert applied.dtype == torch.bool and applied.shape == factor.shape == ()
        assert applied.item() == expected
        assert factor.item() == pytest.approx(exact, rel=3e-7, nan_ok=True)
        assert state.tolist() == plain.state
        if spikes is not None:
            assert spikes.tolist() == pytest.approx(plain.statistic, rel=1e-12)
    assert plain.skipped >= (0 if losses.isfinite().all() else 3)
    assert places == (state.data_ptr(), None if spikes is None else spikes.data_ptr())


def test_where_a_spike_begins(kernels):
    """Right below the limit and right above it, in float32."""
    losses = [1.0, 1.25, 0.75, 1.0]
    deviation = math.sqrt(0.03125 + 1e-6)
    for loss, spike in ((1 + 5 * deviation - 1e-6, False), (1 + 5 * deviation + 1e-6, True)):
        spikes, state = statistic(), state_of()
        for value in [*losses, loss]:
            applied, _ = ops.guard_step(
                torch.tensor(value), torch.tensor(1.0), state, 0.0, 0, spikes, 5.0, 4
            )
        assert applied.item() == (not spike)


def test_float64():
    """Runs in plain PyTorch; norm alone may be float64, too."""
    for loss in (2.0, nan):
        for dtype in (torch.float32, torch.float64):
            state = state_of(4.0)
            applied, factor = ops.guard_step(
                torch.tensor(loss, dtype=dtype), torch.tensor(3.0, dtype=torch.float64), state, 1.5
            )
            assert factor.dtype == torch.float64 and applied.item() == (loss == 2.0)
            assert factor.item() == pytest.approx(
                1.5 / 3.000001 / 4 if applied else nan, nan_ok=True
            )
            assert state.tolist() == ([0, 0, 0, 4, 0] if applied else [1, 1, 1, 4, 0])


def given():
    return torch.tensor(2.0), torch.tensor(5.0), state_of(), 3.0, 2000, statistic(), 7.0, 128


def test_opcheck(kernels):
    opcheck(torch.ops.eva_fast.guard_step.default, given())
    opcheck(torch.ops.eva_fast.guard_step.default, (*given()[:3], 0.0, 0, None, 0.0, 0))


def test_compiled():
    eager, compiled = given(), given()
    torch._dynamo.reset()
    function = torch.compile(ops.guard_step, fullgraph=True, backend="aot_eager")
    for found, expected in zip(function(*compiled), ops.guard_step(*eager), strict=True):
        assert torch.equal(found, expected)
    for found, expected in zip(compiled, eager, strict=True):
        assert not isinstance(found, torch.Tensor) or torch.equal(found, expected)


BAD = {
    "loss has shape": lambda loss, norm, state, spikes: (loss[None], norm, state, spikes),
    "loss has dtype": lambda loss, norm, state, spikes: (loss.half(), norm, state, spikes),
    "norm has shape": lambda loss, norm, state, spikes: (loss, norm[None], state, spikes),
    "state has shape": lambda loss, norm, state, spikes: (loss, norm, state[:4], spikes),
    "state has dtype": lambda loss, norm, state, spikes: (loss, norm, state.double(), spikes),
    "state has strides": lambda loss, norm, state, spikes: (
        loss, norm, state.repeat_interleave(2)[::2], spikes,
    ),
    "spikes has dtype": lambda loss, norm, state, spikes: (loss, norm, state, spikes.float()),
    "spike_steps is 0": lambda loss, norm, state, spikes: (loss, norm, state, spikes),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments(message):
    loss, norm, state, *_, spikes, _, _ = given()
    loss, norm, state, spikes = BAD[message](loss, norm, state, spikes)
    with pytest.raises(ValueError, match=f"guard_step: {message}"):
        ops.guard_step(loss, norm, state, 3.0, 0, spikes, 7.0, 0)
