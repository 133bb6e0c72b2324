"""`Trainer`: `pretrain()` with the loop in the caller's hands."""

from collections.abc import Generator, Iterator, Sequence
from types import TracebackType
from typing import Any

from eva_fast.config import Config
from eva_fast.errors import UsageError
from eva_fast.keywords import AnyPath, PretrainOptions, Unpack, documented
from eva_fast.recipes.pretrain import PretrainResult, steps
from eva_fast.train.callbacks import Callback, Training, check_callbacks


@documented(Config)
class Trainer:
    """A run that the caller takes step by step, with the results of `pretrain`.

        with eva_fast.Trainer(data="/data/photos", steps=1000) as trainer:
            for step in trainer:
                if step % 100 == 0:
                    print(step, trainer.training.metrics["loss"])
        print(trainer.result.weights)

    A `break` ends the run after that step, with a checkpoint and its weights; an exception in the block
    ends it with a checkpoint (of one process). While the block lasts, signals, logging and PyTorch's
    global settings and random state are the run's.

    Args:
        data, model, teacher, out, callbacks, options: as for `eva_fast.pretrain`.
    """

    def __init__(
        self,
        data: Any = "builtin",
        model: str | None = None,
        teacher: Any = None,
        out: AnyPath | None = None,
        callbacks: Sequence[Callback] = (),
        **options: Unpack[PretrainOptions],
    ):
        named = {"model": model, "teacher": teacher, "out": out}
        said = {name: value for name, value in named.items() if value is not None}
        self.config = Config.from_options({"data": data, **said, **options})
        self._seen = _Seen()
        self._steps: Generator[int, None, PretrainResult] = steps(
            self.config, (self._seen, *check_callbacks(callbacks))
        )
        self._result: PretrainResult | None = None

    @property
    def training(self) -> Training:
        """The run under way: model, optimizer, metrics, `stop()`. UsageError before its first step."""
        if self._seen.training is None:
            raise UsageError("the run has not begun: take a first step of the Trainer")
        return self._seen.training

    @property
    def result(self) -> PretrainResult:
        """What the run leaves behind. UsageError before its end."""
        if self._result is None:
            raise UsageError(
                "the run has not ended: iterate the Trainer to its end, or leave its block"
            )
        return self._result

    def run(self) -> PretrainResult:
        """All steps that are left."""
        for _ in self:
            pass
        return self.result

    def __iter__(self) -> Iterator[int]:
        """The number of finished steps after each; goes on where an earlier loop stopped."""
        while self._result is None:
            try:
                step = next(self._steps)
            except StopIteration as end:
                if end.value is None:
                    raise UsageError(
                        "the run ended without a result, by an error or before its first step: make a "
                        "new Trainer"
                    ) from None
                self._result = end.value
                return
            yield step

    def __enter__(self) -> "Trainer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._result is not None:
            return
        if self._seen.training is None or not isinstance(error, Exception | None):
            self._steps.close()
        elif error is None:
            self.training.stop()
            self.run()
        else:
            try:
                self._steps.throw(error)
            except type(error):
                pass  # the block's own goes on its way


class _Seen(Callback):
    """Keeps the run that it is told of."""

    training: Training | None = None

    def on_start(self, training: Training) -> None:
        self.training = training
