"""Worker processes: they die loudly, end with the loader and its program, and stay small."""

import gc
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eva_fast.data import open_source
from tests.data.batches import Memory, build
from tests.data.pictures import write_shard


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("stream", [False, True], ids=["files", "stream"])
def test_a_killed_worker_is_an_error_not_a_hang(tmp_path, stream):
    write_shard(tmp_path / "s.tar", range(30))
    source = open_source(f"pipe:cat {tmp_path}/s.tar") if stream else Memory(60)
    with build(source, workers=2) as loader:
        next(loader)
        pids = loader.worker_pids
        os.kill(pids[-1], signal.SIGKILL)  # for a stream that is the process that reads
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"data (worker|reader).*killed by SIGKILL.*memory"):
            for _ in range(100):
                next(loader)
        assert time.monotonic() - start < 20
        assert not any(map(alive, pids))
        next(loader)  # the loader can be used again, from where it was


class Faulty(Memory):
    def read(self, number):
        if number == 5:
            os._exit(7)
        return super().read(number)


def test_a_worker_that_exits_is_an_error():
    with (
        build(Faulty(30), workers=2) as loader,
        pytest.raises(RuntimeError, match="ended with exit code 7"),
    ):
        for _ in range(6):
            next(loader)


def alive(pid):
    """Whether a process runs (one that has ended and waits to be collected does not)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(pids, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end and any(map(alive, pids)):
        time.sleep(0.05)
    return not any(map(alive, pids))


@pytest.mark.parametrize("how", ["close", "forget"])
def test_workers_end_with_the_loader(how):
    loader = build(Memory(60), workers=2)
    next(loader)
    pids = loader.worker_pids
    assert all(map(alive, pids))
    if how == "close":
        loader.close()
    del loader
    gc.collect()
    assert gone_within(pids, 5)


SCRIPT = """
import sys, time
from eva_fast.data import build_loader, open_source
loader = build_loader(open_source({data!r}), batch_size=8, image_size=28, patch_size=14,
                      mask_count=2, min_block=1, workers=2)
next(loader)
print(*loader.worker_pids, flush=True)
while True:
    next(loader)
"""


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("stream", [False, True], ids=["builtin", "stream"])
def test_workers_end_with_their_parent(tmp_path, sign, stream):
    write_shard(tmp_path / "s.tar", range(30))
    data = f"pipe:cat {tmp_path}/s.tar" if stream else "builtin"
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(data=data)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == (3 if stream else 2)
    if sign == signal.SIGINT:
        os.killpg(process.pid, sign)  # as a terminal sends Ctrl-C: to every process
    else:
        os.kill(process.pid, sign)
    _, errors = process.communicate(timeout=30)
    assert gone_within(pids, 10)
    if sign == signal.SIGINT:
        assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors


def resident(pid, field="VmRSS"):
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+)", text).group(1)) * 1024


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_is_flat():
    source = open_source("builtin", split="val")
    with build(source, workers=2, batch_size=32, image_size=56) as loader:

        def run(batches):
            for _ in range(batches):
                next(loader)
            gc.collect()
            return [resident(pid) for pid in [os.getpid(), *loader.worker_pids]]

        before = run(17)
        after = run(51)  # three epochs more
    growth = [b - a for a, b in zip(before, after)]
    assert max(growth) < 4 << 20, growth
