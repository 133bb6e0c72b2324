"""Runs of several processes that begin within a second: forks of one that has imported all of it.

They find each other as torchrun's do, by the environment; nothing starts them anew."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["tests.soak.imported"])


class Run:
    """So many processes that train together, as of so many machines; what they say is in `log`."""

    def __init__(self, processes: int, log: Path, machines: int = 1, **options):
        port = free_port()
        self.log = log
        self.processes = [
            _forks.Process(
                target=_train, args=(rank, processes, machines, port, log, options), daemon=True
            )
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    def lives(self) -> bool:
        return all(process.exitcode is None for process in self.processes)

    def kill(self, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.processes[rank].pid, signal.SIGKILL)

    def ended(self, seconds: float = 240) -> list[int]:
        """Exit codes. The test fails, and they are killed, where one goes on for longer."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [process for process in self.processes if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        assert not late, f"still running after {seconds} s:\n{self.said()}"
        return [process.exitcode for process in self.processes]

    def done(self, seconds: float = 3600) -> None:
        """Waits for a run that ends well."""
        codes = self.ended(seconds)
        assert not any(codes), f"{codes}\n{self.said()}"

    def said(self) -> str:
        return self.log.read_text()[-3000:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def _train(rank, processes, machines, port, log, options):
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(handle, stream)
    if processes > 1:
        here = processes // machines
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank % here), WORLD_SIZE=str(processes),
            LOCAL_WORLD_SIZE=str(here), MASTER_ADDR="localhost", MASTER_PORT=str(port),
        )  # fmt: skip
    import eva_fast

    eva_fast.pretrain(**options)
    sys.stdout.flush()
