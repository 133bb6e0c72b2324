"""Worker processes that fill a ring of batches.

Two pipes are all they share with the trainer beside the ring: tickets (which rows of which batch
to make) go in, short results come out. A ticket is eight bytes and a result goes in parts of at most
PIPE_BUF, so reads and writes are atomic and no lock exists that a killed worker could take along.

Processes, not threads: of the 0.7 ms that a 500x375 JPEG takes, 0.1 ms (measured) holds the
interpreter's lock. Threads would stop gaining at about seven, and take turns with the thread that
launches the training step long before.
"""

import contextlib
import gc
import multiprocessing
import os
import pickle
import queue
import select
import signal
import struct
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from eva_fast.data.loader.maker import Bad, Outcome
from eva_fast.errors import RunError, UsageError

_TICKET = struct.Struct("<q")
_PART = struct.Struct("<HI?")  # of a message: its bytes, who sends it, whether it is the last one
_ATOMIC = 4096  # PIPE_BUF on Linux: a write up to this size is never split


@dataclass(slots=True)
class Done:
    """Rows of a batch are ready."""

    chunk: int
    tried: int
    bad: int
    reported: Any  # what its payload came with


@dataclass(slots=True)
class Failed:
    """A worker met an error that is not an image's."""

    message: str
    trace: str


# Fills rows [first, end) of a batch from a payload: fill(batch, first, end, payload).
Fill = Callable[[int, int, int, Any], Outcome]
Reader = Callable[["Chunks"], Iterator[tuple[Any, Any]]]


class Chunks:
    """How a batch is cut into the rows that one ticket covers.

    Few rows spread a batch over the workers; more than 512 tickets a batch would fill the pipe.
    """

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.rows_each = max(16, -(-batch_size // 512))
        self.count = -(-batch_size // self.rows_each)

    def rows(self, chunk: int) -> tuple[int, int]:
        first = chunk * self.rows_each
        return first, min(first + self.rows_each, self.batch_size)


def can_start() -> bool:
    """Whether this process may have workers: Python gives a daemonic process, as those of Celery and
    multiprocessing.Pool are, no children."""
    return not multiprocessing.current_process().daemon


def check_count(workers: int) -> None:
    """UsageError for a number of workers that cannot be had here."""
    if workers < 0:
        raise UsageError(f"workers must be 0 (in this process) or more, got {workers}")
    if workers and not can_start():
        raise UsageError(
            f"workers={workers}, but this process is daemonic (Celery, multiprocessing.Pool) and may "
            "not start others; give workers=0, which decodes in this process"
        )


class WorkerPool:
    """`count` forked processes that call `fill` for every ticket.

    `reader(chunks)`, where given, yields (payload, what to report) for one ticket after the other.
    It runs in one more process, which passes the payloads on to the workers in turn.
    """

    def __init__(self, count: int, chunks: Chunks, fill: Fill, reader: Reader | None = None):
        self.chunks = chunks
        self._buffer = b""
        self._begun: dict[int, bytes] = {}  # messages of which parts are missing, by sender
        self._ticket_out, self._ticket_in = os.pipe()
        self._result_out, self._result_in = os.pipe()
        os.set_blocking(self._result_out, False)
        self._context = multiprocessing.get_context("fork")
        self.processes: list[Any] = []
        pipes = [self._context.Pipe(duplex=False) for _ in range(count if reader else 0)]
        for number in range(count):
            inputs = pipes[number][0] if pipes else None
            self._start(f"data worker {number}", self._work, fill, inputs)
        if reader is not None:
            self._start("data reader", self._read, reader, [send for _, send in pipes])

    def _start(self, name: str, target: Callable, *args: Any) -> None:
        process = self._context.Process(
            target=self._child, args=(os.getpid(), target, *args), name=name, daemon=True
        )
        with warnings.catch_warnings():  # Python 3.12 warns of fork beside threads: see _child
            warnings.simplefilter("ignore", DeprecationWarning)
            process.start()
        self.processes.append(process)

    # ---- in the child ----

    def _child(self, parent: int, target: Callable, *args) -> None:
        """Runs in the new process, on numpy, Pillow and the native library alone: no torch threads.

        Ctrl-C and the end of the terminal, which reach it too, are the trainer's to handle. A worker
        ends when its parent does, however that ends.
        """
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.freeze()  # collecting would write to, and so copy, every page shared with the trainer
        os.close(self._ticket_in)
        os.close(self._result_out)
        threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
        try:
            import torch

            torch.set_num_threads(1)
            target(*args)
        except (BrokenPipeError, EOFError):
            pass  # the trainer, or the process that reads for this one, is gone
        except BaseException as error:
            named = "" if isinstance(error, (UsageError, RunError)) else f"{type(error).__name__}: "
            text = f"{named}{error}"
            with contextlib.suppress(OSError):
                self._send(Failed(text[:1000], traceback.format_exc()[-2000:]))
            raise SystemExit(1) from None

    def _work(self, fill: Fill, inputs: Any) -> None:
        given = self._tickets() if inputs is None else iter(inputs.recv, None)
        for ticket, payload, reported in given:
            batch, chunk = divmod(ticket, self.chunks.count)
            outcome = fill(batch, *self.chunks.rows(chunk), payload)
            for bad in outcome.bad:
                self._send((batch, bad))
            done = Done(chunk, outcome.tried, len(outcome.bad), reported)
            self._send((batch, done))

    def _read(self, reader: Reader, outputs: list[Any]) -> None:
        queues: list[queue.Queue] = [queue.Queue(1) for _ in outputs]
        for waiting, output in zip(queues, outputs):
            threading.Thread(target=_forward, args=(waiting, output), daemon=True).start()
        payloads = reader(self.chunks)
        for ticket, _, _ in self._tickets():
            queues[ticket % len(queues)].put((ticket, *next(payloads)))

    def _tickets(self) -> Iterator[tuple[int, Any, Any]]:
        """(ticket, no payload, nothing to report) as they are handed out, until the trainer ends."""
        while raw := os.read(self._ticket_out, _TICKET.size):
            yield _TICKET.unpack(raw)[0], None, None

    def _send(self, message: Any) -> None:
        raw, most = pickle.dumps(message), _ATOMIC - _PART.size
        for start in range(0, len(raw), most):
            part = raw[start : start + most]
            header = _PART.pack(len(part), os.getpid(), start + most >= len(raw))
            os.write(self._result_in, header + part)

    # ---- in the trainer ----

    def order(self, batch: int) -> None:
        """Hands out the tickets of batch number `batch`."""
        first = batch * self.chunks.count
        tickets = range(first, first + self.chunks.count)
        raw = b"".join(_TICKET.pack(ticket) for ticket in tickets)
        for start in range(0, len(raw), _ATOMIC):
            os.write(self._ticket_in, raw[start : start + _ATOMIC])

    def messages(self, timeout: float) -> list[tuple[int, Bad | Done]]:
        """(batch, report) as the workers sent them, waiting up to `timeout` seconds for the first.

        Raises RuntimeError where a worker failed or died.
        """
        poll = select.poll()
        poll.register(self._result_out, select.POLLIN)
        for process in self.processes:
            poll.register(process.sentinel, select.POLLIN)
        poll.poll(timeout * 1000)
        dead = [process for process in self.processes if not process.is_alive()]
        # read after the check for the dead, so that their last words come along
        with contextlib.suppress(BlockingIOError):
            while raw := os.read(self._result_out, 1 << 16):
                self._buffer += raw
        found = self._parse()
        for message in found:
            if isinstance(message, Failed):
                raise RunError(f"{message.message}\n\nIn a data worker:\n{message.trace}")
        if dead:
            raise RunError(_obituary(dead[0]))
        return found

    def _parse(self) -> list[Any]:
        found, start = [], 0
        while start + _PART.size <= len(self._buffer):
            length, sender, last = _PART.unpack_from(self._buffer, start)
            end = start + _PART.size + length
            if end > len(self._buffer):
                break
            begun = self._begun.pop(sender, b"") + self._buffer[start + _PART.size : end]
            if last:
                found.append(pickle.loads(begun))
            else:
                self._begun[sender] = begun
            start = end
        self._buffer = self._buffer[start:]
        return found

    def close(self) -> None:
        """Ends the processes; what they had in hand is lost."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.join()
        self.processes = []
        for end in ("_ticket_in", "_ticket_out", "_result_in", "_result_out"):
            number = getattr(self, end)
            if number >= 0:
                os.close(number)
                setattr(self, end, -1)


def _forward(waiting: queue.Queue, output: Any) -> None:
    """Passes payloads on to one worker, so that a slow one does not keep the others waiting."""
    with contextlib.suppress(BrokenPipeError):
        while True:
            output.send(waiting.get())


def _die_with(parent: int) -> None:
    """Ends this process within a second of its parent's end, whatever it is waiting for."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _obituary(process) -> str:
    process.join(1)
    code = process.exitcode
    if code is not None and code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        if code == -signal.SIGKILL:
            how += " (often the system being out of memory)"
    else:
        how = f"ended with exit code {code}"
    return f"{process.name} (pid {process.pid}) {how}: no more batches can be made"
