"""The measured choice: complete, kept on disk, without a trace in the run."""

import json
import logging
import time

import pytest
import torch

import eva_fast
from eva_fast.config import Config
from eva_fast.model import head
from eva_fast.objectives.eva import Eva
from eva_fast.ops import choose, kept, registry
from eva_fast.ops.race import timed_by
from eva_fast.train import TrainState
from eva_fast.train.kernels import settle_kernels
from eva_fast.train.resolve import setting_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield
    choose.set_kernels("auto")


OPTIONS = dict(
    model="eva_ti_patch8_32", embed_dim=32, depth=2, num_heads=2, mlp_hidden=48, mask_count=6,
    batch_size=8, accumulate=2, device="cpu",
)  # fmt: skip


@pytest.fixture
def parts():
    return run_parts()


def run_parts(**options):
    """(setting, objective, state) of a run, ready to begin."""
    torch.manual_seed(0)
    setting = setting_of(Config.from_options({**OPTIONS, **options}))
    objective, teacher = Eva(), eva_fast.load_teacher("hog", grid=setting.sizes.grid)
    module = objective.build(setting, teacher)
    return setting, objective, TrainState.begin(setting, objective, module, teacher, loader=None)


def settle(*parts, kept=None):
    return settle_kernels(*parts, kept=kept)


def test_every_op_of_the_step_is_chosen_and_the_run_is_untouched(parts):
    state = parts[2]
    model, optimizer = state.module, state.optimizer
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    random = torch.get_rng_state()
    chosen = settle(*parts)
    assert {"add_layer_norm", "bias_gelu_backward", "negative_cosine", "adamw"} <= chosen.keys()
    for op, kind in chosen.items():
        assert choose.implementation(op, "cpu") == kind
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in model.parameters())
    assert not any(t.any() for moments in optimizer.state.values() for t in moments.values())
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert state.step == 0 and not state.sums.tensor.any() and not state.guard.state[:3].any()


def test_the_second_start_reads_the_first_ones_choice(parts, caplog):
    first = settle(*parts)

    with caplog.at_level(logging.INFO), timed_by(lambda *_: pytest.fail("measured again")):
        assert settle(*parts) == first
    assert "as measured before" in caplog.text and "add_layer_norm" in caplog.text
    assert first.keys() in [choices.keys() for _, choices in kept.everything()]


def test_a_damaged_cache_is_measured_again(parts):
    first = settle(*parts)
    (file,) = (path for path, choices in kept.everything() if "adamw" in choices)
    file.write_text('{"adamw": {"implementation": "magic", "milliseconds": {}}}')
    assert settle(*parts).keys() == first.keys()
    known = registry.find("adamw").implementations
    assert json.loads(file.read_text())["adamw"]["implementation"] in known


def test_the_faster_one_is_taken(parts, monkeypatch):
    """A torch implementation that sleeps must lose, a fused one that sleeps too."""
    slow = "torch" if choose.implementation("bias_gelu", "cpu") == "native" else None
    if slow is None:
        pytest.skip("no C++ library here: there is nothing to choose between")
    for victim, winner in (("torch", "native"), ("native", "torch")):
        function = registry.find("bias_gelu").function(victim)

        def sleeping(*arguments, function=function):
            time.sleep(0.02)
            return function(*arguments)

        choose.register("bias_gelu", victim, sleeping)
        try:
            for file, _ in kept.everything():
                file.unlink()
            assert settle(*parts)["bias_gelu"] == winner
        finally:
            choose.register("bias_gelu", victim, function)


def test_a_resumed_run_keeps_its_kernels(parts):
    assert settle(*parts, kept={"bias_gelu": "torch"}) == {"bias_gelu": "torch"}
    assert choose.implementation("bias_gelu", "cpu") == "torch"


def test_forced():
    assert settle(*run_parts(kernels="torch")) == {}
    assert choose.implementation("add_layer_norm", "cpu") == "torch"


@pytest.mark.parametrize("faster", ["composed", "fused"])
def test_the_head_is_measured_whole_where_there_is_a_fused_one(parts, monkeypatch, faster):
    """As on a GPU: forward and backward of both ways, and the step takes the faster."""
    monkeypatch.setattr(choose, "can_run", lambda op, name, device: op == head.OP)
    taken, real = [], head.composed_loss
    for name in ("composed", "fused"):

        def loss(*arguments, name=name):
            taken.append(name)
            return real(*arguments)

        monkeypatch.setattr(head, f"{name}_loss", loss)

    def clock(name, run, device):
        run()
        return 1.0 if taken[-1] == faster else 2.0

    model = parts[2].module
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    with timed_by(clock):
        chosen = settle(*parts)
    assert chosen[head.OP] == ("triton" if faster == "fused" else "torch")
    assert set(taken) == {"composed", "fused"}
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    taken.clear()
    mask = torch.arange(6, dtype=torch.int32).repeat(2, 1)
    model.loss(torch.randn(2, 3, 32, 32), mask, torch.randn(12, model.sizes.predict_dim))
    assert taken == [faster]


def test_a_cpu_measures_on_a_few_images(caplog):
    """Larger batches share what was measured."""
    caplog.set_level(logging.INFO, "eva_fast")
    settle(*run_parts(batch_size=16, accumulate=1))
    assert "kernels measured" in caplog.text
    caplog.clear()
    for size in (24, 64):
        settle(*run_parts(batch_size=size, accumulate=1))
    assert "kernels measured" not in caplog.text and "as measured before" in caplog.text
