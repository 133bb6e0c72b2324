"""How the loader's throughput grows with its workers, from files on disk to batches.

    python -m bench.test_loader [WORKERS ...]           # default: 1 2

The numbers of workers take turns. Beside images a second by the clock it reports images per second
of CPU time the workers took: on a machine that does other work as well, the former says what was
left over, the latter whether the workers hinder each other.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

from bench.photos import jpegs
from eva_fast.data import Source, build_loader, open_source

BATCH = 64


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes, user and system (Linux)."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def measure(source: Source, workers: int, batches: int) -> tuple[float, float]:
    """(images per second of the clock, images per CPU second of the workers), warmed up."""
    with build_loader(source, batch_size=BATCH, mask_ratio=105 / 256, workers=workers) as loader:
        for _ in range(4):
            next(loader)
        pids = loader.worker_pids
        start, used = time.perf_counter(), cpu_seconds(pids)
        for _ in range(batches):
            next(loader)
        seconds, used = time.perf_counter() - start, cpu_seconds(pids) - used
    return BATCH * batches / seconds, BATCH * batches / max(used, 1e-3)


def compare(counts: list[int], rounds: int = 3, batches: int = 25) -> dict[int, tuple]:
    """Medians of `measure` for each number of workers."""
    with tempfile.TemporaryDirectory() as folder:
        for number, data in enumerate(jpegs(300)):
            (Path(folder) / f"{number:04d}.jpg").write_bytes(data)
        source = open_source(folder)
        runs = [
            {workers: measure(source, workers, batches * workers) for workers in counts}
            for _ in range(rounds)
        ]
    return {
        workers: tuple(statistics.median(run[workers][i] for run in runs) for i in (0, 1))
        for workers in counts
    }


def test_loader() -> None:
    """It runs; the same batches for any workers are asserted in tests/data/test_loader.py."""
    result = compare([1, 2], rounds=1, batches=2)
    assert all(rate > 0 for rates in result.values() for rate in rates)


def main(counts: list[int]) -> None:
    torch.set_num_threads(1)
    result = compare(counts)
    first = result[counts[0]]
    for workers, (rate, per_cpu) in result.items():
        print(
            f"{workers} workers: {rate:.0f} images/s ({rate / first[0]:.2f} times), "
            f"{per_cpu:.0f} images per CPU second ({per_cpu / first[1]:.2f} times)"
        )
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [1, 2])
