"""The loop in the caller's hands: the same run as `pretrain`'s, left early, broken, gone on with."""

import signal

import pytest
import torch
from safetensors.torch import load_file

import eva_fast
from eva_fast.errors import UsageError
from eva_fast.train import checkpoint

OPTIONS = dict(
    teacher="hog", depth=1, embed_dim=32, num_heads=2, mlp_hidden=48, batch_size=4, steps=5,
    workers=0, log_every=2, device="cpu", kernels="torch",
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return eva_fast.pretrain(out=tmp_path_factory.mktemp("whole"), **OPTIONS)


def same(one, other):
    a, b = load_file(one), load_file(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_its_steps_are_those_of_pretrain(whole, tmp_path):
    seen, losses = [], []
    with eva_fast.Trainer(out=tmp_path, **OPTIONS) as trainer:
        for step in trainer:
            seen.append(step)
            losses.append(trainer.training.metrics.get("loss"))
    assert seen == [1, 2, 3, 4, 5] and losses[0] is None and losses[-1] == whole.metrics["loss"]
    assert same(trainer.result.weights, whole.weights) and trainer.result.stopped_by is None
    assert trainer.training.step == 5 and trainer.training.total == 5


def test_left_early_it_has_a_checkpoint_and_goes_on(whole, tmp_path):
    handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
    with eva_fast.Trainer(out=tmp_path, **OPTIONS) as trainer:
        for step in trainer:
            if step == 2:
                break
    assert trainer.result.stopped_by == "callback" and trainer.result.weights.is_file()
    assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
    rest = eva_fast.Trainer(out=tmp_path, resume="auto", **OPTIONS)
    assert list(rest) == [3, 4, 5] and same(rest.run().weights, whole.weights)


def test_stopped_before_its_first_step_it_goes_on(whole, tmp_path):
    class Never(eva_fast.Callback):
        def on_start(self, training):
            training.stop()

    found = eva_fast.pretrain(out=tmp_path, callbacks=[Never()], **OPTIONS)
    assert found.stopped_by == "callback" and found.weights.is_file() and not found.metrics
    assert found.loss is found.first_loss is found.gain is None and (found.step, found.total) == (
        0,
        5,
    )
    assert "stopped by callback after 0 of 5 steps" in str(found) and "no metrics" in str(found)
    rest = eva_fast.pretrain(out=tmp_path, resume="auto", **OPTIONS)
    assert same(rest.weights, whole.weights)


def test_left_at_its_last_step_it_is_complete(whole, tmp_path):
    with eva_fast.Trainer(out=tmp_path, **OPTIONS) as trainer:
        for step in trainer:
            if step == 5:
                break
    assert trainer.result.stopped_by is None and same(trainer.result.weights, whole.weights)
    assert trainer.result.loss == whole.metrics["loss"] and "stopped" not in str(trainer.result)


def test_a_signal_after_the_last_step_is_told_of_a_complete_run(tmp_path):
    """Who runs several asks for it."""
    with eva_fast.Trainer(out=tmp_path, **OPTIONS) as trainer:
        for step in trainer:
            if step == 5:
                signal.raise_signal(signal.SIGTERM)
    assert (trainer.result.stopped_by, trainer.result.signal) == (None, "SIGTERM")


def test_an_error_in_the_block_is_raised_after_a_checkpoint(tmp_path):
    with pytest.raises(ZeroDivisionError), eva_fast.Trainer(out=tmp_path, **OPTIONS) as trainer:
        for step in trainer:
            if step == 3:
                1 / 0  # noqa: B018
    assert [p.name for p in checkpoint.steps_in(tmp_path / "checkpoints")] == ["step_000000003"]
    with pytest.raises(UsageError, match="has not ended"):
        trainer.result  # noqa: B018
    with pytest.raises(UsageError, match="ended without a result, by an error"):
        list(trainer)


def test_the_student_as_it_is_now_and_callbacks(tmp_path):
    class Watch(eva_fast.Callback):
        def on_end(self, training, stopped_by):
            self.features = training.student().forward_features(torch.zeros(1, 3, 96, 96))

    watch = Watch()
    trainer = eva_fast.Trainer(out=tmp_path, callbacks=[watch], **OPTIONS)
    with pytest.raises(UsageError, match="has not begun"):
        trainer.training  # noqa: B018
    assert trainer.run().metrics["step"] == 5 and watch.features.shape == (1, 37, 32)


def test_options_are_checked_before_the_first_step():
    with pytest.raises(ValueError, match="depht"):
        eva_fast.Trainer(depht=3)
    with pytest.raises(UsageError, match="derived from"):
        eva_fast.Trainer(callbacks=[print], **OPTIONS)
    with pytest.raises(UsageError, match="takes a list"):
        eva_fast.pretrain(callbacks=eva_fast.Callback(), **OPTIONS)
