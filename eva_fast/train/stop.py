"""SIGTERM, SIGINT and SIGHUP (the terminal is gone) ask the loop to stop after the step at hand; a
second SIGINT stops at once."""

import logging
import signal
import threading

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """Context manager. `signal_name` is None until the process is asked to stop.

    Handlers are installed in the main thread only (Python allows no other) and put back on exit.
    """

    def __init__(self):
        self.signal_name: str | None = None
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # started with nohup: to live on is what was asked for
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @property
    def number(self) -> int:
        """Of the signal that came; 0 for none."""
        return 0 if self.signal_name is None else signal.Signals[self.signal_name].value

    def take(self, number: int) -> None:
        """The request of another process of the run, or of this one."""
        if self.signal_name is None:
            self._on_signal(number, None)

    def _on_signal(self, number, _frame) -> None:
        if self.signal_name is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_name = signal.Signals(number).name
        log.warning("%s: stopping after this step, with a checkpoint", self.signal_name)
