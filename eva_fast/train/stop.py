"""SIGTERM, SIGINT and SIGHUP (the terminal is gone), or a callback, ask the loop to stop after the step
at hand; a second SIGINT stops at once."""

import logging
import signal
import threading

log = logging.getLogger(__name__)
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
CALLBACK, CALLBACK_NUMBER = "callback", 1 + max(signal.valid_signals())


class StopRequest:
    """Context manager. `reason` is None until the process is asked to stop: then the signal's name, or
    `CALLBACK`.

    Handlers are installed in the main thread only (Python allows no other) and put back on exit.
    """

    def __init__(self):
        self.reason: str | None = None
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
        """Of the signal that came, or `CALLBACK_NUMBER`; 0 for none."""
        if self.reason is None:
            return 0
        return CALLBACK_NUMBER if self.reason == CALLBACK else signal.Signals[self.reason].value

    def take(self, number: int) -> None:
        """The request of another process of the run, or of this one."""
        if number == CALLBACK_NUMBER:
            self.ask()
        elif self.reason is None:
            self._on_signal(number, None)

    def ask(self) -> None:
        """A callback's request."""
        if self.reason is None:
            self.reason = CALLBACK
            log.info("a callback asks for it: stopping after this step, with a checkpoint")

    def _on_signal(self, number, _frame) -> None:
        if self.reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = signal.Signals(number).name
        log.warning("%s: stopping after this step, with a checkpoint", self.reason)
