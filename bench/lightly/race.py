"""Two runs in turns: the processes, who is stopped while the other runs, and what a turn took."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parents[2]
TICKS = os.sysconf("SC_CLK_TCK")


class Turn(NamedTuple):
    """Steps that one side made."""

    seconds: float
    cpu_seconds: float
    """Of all its processes, the loader's too."""


class Side:
    """A run in processes of its own, which moves when it is told and is stopped otherwise.

    words: the command; `{answers}` in it becomes the descriptor that it answers on.
    """

    def __init__(self, name: str, words: Sequence[str], environment: Mapping[str, str], log: Path):
        self.name, self.log = name, log
        reading, writing = os.pipe()
        self._answers = os.fdopen(reading)
        with log.open("wb") as out:
            begin = time.perf_counter()
            self._process = subprocess.Popen(
                [word.replace("{answers}", str(writing)) for word in words],
                stdin=subprocess.PIPE, stdout=out, stderr=out, pass_fds=[writing], text=True,
                env={**os.environ, **environment}, cwd=HERE, start_new_session=True,
            )  # fmt: skip
        os.close(writing)
        self._answer()
        self.first_step = Turn(time.perf_counter() - begin, self._cpu())
        """From starting Python to the end of the first step."""
        self._signal(signal.SIGSTOP)

    def turn(self, steps: int) -> Turn:
        """Makes so many steps, alone."""
        before = self._cpu()
        seconds = self._ask({"steps": steps})["seconds"]
        return Turn(seconds, self._cpu() - before)

    def flops(self) -> dict[str, int]:
        """{operator: counted FLOPs} of a step."""
        return self._ask({"count": True})["flops"]

    def end(self) -> None:
        """Ends the run where it is."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _ask(self, order: dict[str, Any]) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        print(json.dumps(order), file=self._process.stdin, flush=True)
        answer = self._answer()
        self._signal(signal.SIGSTOP)
        return answer

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended early: {self.log.read_text()[-3000:]}")
        return json.loads(line)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)
        if number == signal.SIGSTOP:
            os.waitpid(self._process.pid, os.WUNTRACED)

    def _cpu(self) -> float:
        """Processor's seconds of the processes in the run's group that live."""
        found = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                found += ticks(stat.read_text(), self._process.pid)
            except (FileNotFoundError, ProcessLookupError):
                continue  # ended meanwhile
        return found / TICKS


def ticks(stat: str, group: int) -> int:
    """User and system time of a line of /proc/PID/stat; 0 of another process group."""
    words = stat.rpartition(")")[2].split()  # the name in brackets may hold anything
    return int(words[11]) + int(words[12]) if int(words[2]) == group else 0


def rounds(sides: Sequence[Side], count: int, steps: int, warm: int) -> list[list[Turn]]:
    """Turns of all sides, a list a round, after one of `warm` steps each; who is first alternates."""
    for side in sides:
        side.turn(warm)
    found = []
    for number in range(count):
        order = list(range(len(sides)))[:: 1 if number % 2 == 0 else -1]
        taken = {i: sides[i].turn(steps) for i in order}
        found.append([taken[i] for i in range(len(sides))])
    return found
