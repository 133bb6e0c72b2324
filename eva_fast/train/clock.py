"""What a run measures of itself between two log points."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from eva_fast.train.baseline import LOSS, with_gain
from eva_fast.train.schedule import RunLength
from eva_fast.train.state import TrainState
from eva_fast.world import of_all


class Clock:
    """Turns the sums since the last log point into the line of metrics.jsonl."""

    def __init__(self, state: TrainState, batch_size: int, length: RunLength):
        self.state, self.batch_size, self.length = state, batch_size, length
        self.start = self.mark = time.monotonic()
        self.step, self.taken = state.step, 0
        self.waited = state.loader.wait_seconds
        self.making = 0.0
        self.waited_for_others = 0.0

    @contextmanager
    def host(self) -> Iterator[None]:
        """Around what makes a step: nothing in it waits for the device, but where that is behind by
        many launches the next one does."""
        start = time.perf_counter()
        yield
        self.making += time.perf_counter() - start
        self.taken += 1

    def restart(self) -> None:
        """Forgets what was measured since the last log point: the run went back."""
        self.mark, self.step, self.making = time.monotonic(), self.state.step, 0.0
        self.waited = self.state.loader.wait_seconds
        self._own_ms(1)

    def read(self, rate: float, waited_for_others: float = 0.0) -> dict[str, Any]:
        """Reads the device. SkippedError if too many steps were skipped in a row. waited_for_others:
        seconds so far, on the host. Of a run of several processes all must call it."""
        state, length = self.state, self.length
        means = with_gain(state.sums.take())
        skipped = state.guard.check()
        now, waited = time.monotonic(), state.loader.wait_seconds
        seconds, steps = max(now - self.mark, 1e-9), state.step - self.step
        per_step = (now - self.start) / max(self.taken, 1)
        record = {
            "step": state.step,
            "epoch": round(state.step / length.steps_per_epoch, 4),
            **{name: means.pop(name) for name in ("loss", LOSS, "gain") if name in means},
            "lr": rate,
            "grad_norm": means.pop("grad_norm"),
            **means,
            "images_per_second": round(steps * self.batch_size / seconds, 2),
            **self._waits((waited - self.waited) / seconds, waited_for_others, self._own_ms(steps)),
            "host_ms": round(1e3 * self.making / max(steps, 1), 3),
            "seconds": round(now - self.start, 2),
            "seconds_left": round(per_step * (length.total - state.step), 1),
            "skipped_steps": skipped,
            "bad_images": state.loader.bad_count,
        }
        self.mark, self.step, self.waited, self.making = now, state.step, waited, 0.0
        return record

    def _own_ms(self, steps: int) -> float:
        """Milliseconds a step of what this process did without others, since it was last asked."""
        own = self.state.own
        return 0.0 if own is None else round(1e3 * own.take() / max(steps, 1), 3)

    def _waits(self, data: float, others: float, own_ms: float) -> dict[str, Any]:
        """Shares of the time since the last log point: waiting for data, the longest of all processes;
        and of several, each one's, each one's waiting for the others' hosts, least on the slowest, and
        the milliseconds of its own work, most on the slowest."""
        since, self.waited_for_others = others - self.waited_for_others, others
        seconds = max(time.monotonic() - self.mark, 1e-9)
        own = round(data, 4), round(since / seconds, 4), own_ms
        every = of_all(own)
        record: dict[str, Any] = {"data_wait": max(wait for wait, _, _ in every)}
        if len(every) > 1:
            record["data_waits"] = [wait for wait, _, _ in every]
            record["waits_for_others"] = [wait for _, wait, _ in every]
            record["own_ms"] = [own for _, _, own in every]
        return record
