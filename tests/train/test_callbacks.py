"""Callbacks: what they are told and when, and what they may do."""

import pytest

from eva_fast.errors import UsageError
from eva_fast.train.callbacks import Callback, check_callbacks
from tests.train.fakes import make_step
from tests.train.test_loop import lines, run, steps


class Diary(Callback):
    def __init__(self):
        self.told = []

    def on_start(self, training):
        self.told.append(("start", training.step, training.total))

    def on_step(self, training):
        self.told.append(("step", training.step))

    def on_log(self, training, metrics):
        assert training.metrics == metrics
        self.told.append(("log", metrics["step"], metrics["loss"]))

    def on_checkpoint(self, training, folder):
        assert (folder / "manifest.json").is_file() and training.first
        self.told.append(("checkpoint", folder.name))

    def on_end(self, training, stopped_by):
        self.told.append(("end", training.step, stopped_by))


def test_what_is_told_and_when(tmp_path):
    diary = Diary()
    run(tmp_path, make_step(), total=5, checkpoint_every=2, callbacks=[diary])
    named = {what: [rest for name, *rest in diary.told if name == what] for what, *_ in diary.told}
    assert diary.told[0] == ("start", 0, 5) and diary.told[-1] == ("end", 5, None)
    assert named["step"] == [[n] for n in range(1, 6)]
    assert named["log"] == [[line["step"], line["loss"]] for line in lines(tmp_path)]
    assert named["checkpoint"] == [[f"step_{n:09d}"] for n in (2, 4, 5)]
    assert diary.told.index(("step", 2)) < diary.told.index(("log", *named["log"][0]))


def test_callbacks_move_no_number(tmp_path):
    plain, watched = make_step(), make_step()
    run(tmp_path / "plain", plain, total=4)
    run(tmp_path / "watched", watched, total=4, callbacks=[Diary(), Diary()])
    assert [line["loss"] for line in lines(tmp_path / "plain")] == [
        line["loss"] for line in lines(tmp_path / "watched")
    ]


def test_a_callback_ends_the_run_with_a_checkpoint(tmp_path):
    class Enough(Callback):
        def on_step(self, training):
            if training.step == 3:
                training.stop()
                training.stop()

    diary = Diary()
    assert run(tmp_path, make_step(), total=9, callbacks=[Enough(), diary]) == "callback"
    assert steps(tmp_path) == [3] and diary.told[-1] == ("end", 3, "callback")


def test_a_run_that_is_stopped_before_its_first_step_goes_on_from_there(tmp_path):
    class Never(Callback):
        def on_start(self, training):
            training.stop()

    for _ in range(2):
        assert run(tmp_path, make_step(), total=3, callbacks=[Never()]) == "callback"
        assert steps(tmp_path) == [0]
    step, plain = make_step(), make_step()
    step.state.restore(tmp_path / "checkpoints" / "step_000000000")
    run(tmp_path, step, total=3)
    run(tmp_path / "plain", plain, total=3)
    assert lines(tmp_path)[-1]["loss"] == lines(tmp_path / "plain")[-1]["loss"]


@pytest.mark.parametrize("hook", ["on_step", "on_log", "on_start"])
def test_an_exception_of_one_is_raised_after_a_checkpoint(tmp_path, hook):
    class Broken(Callback):
        pass

    def fail(self, training, *values):
        if training.step in (0, 4):
            raise KeyError("mine")

    setattr(Broken, hook, fail)
    with pytest.raises(KeyError, match="mine"):
        run(tmp_path, make_step(), total=9, callbacks=[Broken()])
    assert steps(tmp_path) == ([] if hook == "on_start" else [4])


def test_what_is_no_callback_is_told():
    with pytest.raises(UsageError, match=r"derived from eva_fast\.Callback.*print"):
        check_callbacks([print])
    with pytest.raises(UsageError, match="an instance of it"):
        check_callbacks([Callback])
    for alone in (Callback(), None):
        with pytest.raises(UsageError, match="takes a list"):
            check_callbacks(alone)


def test_stopped_at_its_last_step_a_run_is_complete(tmp_path):
    class Last(Callback):
        def on_step(self, training):
            if training.step == training.total:
                training.stop()

    diary = Diary()
    assert run(tmp_path, make_step(), total=3, callbacks=[Last(), diary]) is None
    assert diary.told[-1] == ("end", 3, None)


def made(**methods):
    return type("Mine", (Callback,), methods)()


@pytest.mark.parametrize(
    "callback, message",
    [
        (
            made(on_setp=lambda self, training: 0),
            r"Mine\.on_setp is never called; did you mean on_step",
        ),
        (made(on_checkpiont=lambda self, t, folder: 0), "did you mean on_checkpoint"),
        (made(on_train_epoch_begin=lambda self, t: 0), "never called; there are on_start, on_step"),
        (made(on_step=lambda self: 0), r"on_step must take \(self, training\), and has \(\)"),
        (made(on_log=lambda self, training: 0), r"on_log must take \(self, training, metrics\)"),
        (made(on_end=lambda self, t, by, more: 0), "missing a required argument: 'more'"),
    ],
)
def test_a_method_that_would_not_be_called_as_it_is_written_is_told(callback, message):
    with pytest.raises(UsageError, match=message):
        check_callbacks([callback])


def test_a_method_that_nothing_would_wait_for_is_told():
    class Later(Callback):
        async def on_step(self, training):
            pass

    with pytest.raises(UsageError, match="on_step is async"):
        check_callbacks([Later()])


def test_what_a_callback_may_have_beside_its_methods():
    class Rich(Callback):
        on_gpu = True

        @property
        def on_disk(self):
            raise RuntimeError("nobody asked")

        def on_step(self, *values, **named):
            pass

        def on_log(self, training, metrics, more=3):
            pass

        def _on_anything(self):
            pass

    rich = Rich()
    assert check_callbacks([rich]) == (rich,)
